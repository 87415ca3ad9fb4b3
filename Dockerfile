# syntax=docker/dockerfile:1
FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY config config
COPY deploy deploy
COPY src src
# With the C library in it: it needs nothing of what it is copied to.
RUN RUSTFLAGS=-Ctarget-feature=+crt-static deploy/build

# Without a shell, a package manager and libraries; with the certificates that issuers of tokens are trusted by.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /source/target/optimized/inference-router /usr/local/bin/inference-router
# Kubernetes can only tell by number that this is not root.
USER 65532:65532
# Clients; operators and Prometheus (once admin.address is not 127.0.0.1, its default).
EXPOSE 8080 9090
# For Docker; Kubernetes asks /readyz and /healthz itself.
HEALTHCHECK --interval=10s --timeout=5s CMD ["/usr/local/bin/inference-router", "ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/inference-router"]
CMD ["serve", "--config", "/etc/inference-router/router.yaml"]
