# Short names for what people run often. The gate itself is `.ci/run`; these recipes call its steps.

# Print the recipes.
default:
    @just --list

# Seconds: format and types of everything. Run it while you edit.
check:
    cargo fmt --check
    cargo check --all-targets --locked

# Seconds once built: the tests beside the code; `just test-unit policy::admit` runs a part.
test-unit filter='':
    cargo test --locked --lib -- {{filter}}

# Seconds once built: one integration suite, such as `just test router cli::`.
test suite filter='':
    cargo test --locked --test {{suite}} -- {{filter}}

# Seconds: layers, unique names, and links and commands in the documentation.
test-structure:
    cargo test --locked --test layers --test docs

# Minutes: every test, the long ones too.
test-all:
    .ci/run run_tests run_long_tests

# Clippy with warnings denied.
lint:
    .ci/run check_lints

# Rewrite the generated files: config/reference.yaml, deploy/crd and docs/reference.
generate:
    UPDATE_FILES=1 cargo test --locked --lib -- config:: model::crd
    UPDATE_FILES=1 cargo test --locked --test docs

# Build the documentation as a book into target/book.
book:
    mdbook build --dest-dir ../target/book docs

# The demo on this machine.
demo:
    cargo run --release -- demo

# Each benchmark once.
bench-smoke:
    .ci/run smoke_benchmarks

# The whole gate, as CI runs it.
ci:
    .ci/run
