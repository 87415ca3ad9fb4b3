"""What a shadow costs the live requests: the same load on four routers, one without a shadow, one that copies 10 % to
one, one that compares the answers as well, one whose shadow takes connections and never answers. CPU is that of the whole
process: answers are compared on a thread of their own.
"""
import socket
import statistics

# Percent.
SHARE = 10
# What the shadow may have at once, where it hangs: after that there is no slot, and no copy.
SLOTS = 8


def compare(options, load, run, costs, progress):
    """Rows of a table."""
    progress("the router with a shadow")
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen(64)
        plain = run("mirror-none")
        mirrored = run("mirror-some", mirror=(SHARE, plain.ports.green, 512))
        comparing = run("mirror-compares", mirror=(SHARE, plain.ports.green, 512), comparison=True)
        silent = run("mirror-hangs", mirror=(SHARE, hanging.getsockname()[1], SLOTS))
        routers = (plain, mirrored, comparing, silent)
        cpu = costs(options, load, *routers, of=lambda router: [router.cpu()])
        latencies = []
        for number in range(options.rounds):
            progress(f"latency with a shadow, round {number + 1} of {options.rounds}")
            seen = {}
            # Another one first in the next round: nobody always follows the same.
            for router in routers[number % 4:] + routers[:number % 4]:
                seen[router] = load.own("rate", router.ports.listen, options.connections, options.seconds, options.rate)
            if any(one["failed"] for one in seen.values()):
                raise SystemExit("live requests failed beside a shadow")
            latencies.append([seen[router] for router in routers])
    rows = [["a shadow beside the live requests", "CPU per live request, of that without", "worst",
             f"p50 / p99 ms at {options.rate:g}/s, without: {quantiles(latencies, 0)}"]]
    names = (f"{SHARE} % are copied", f"{SHARE} % are copied and compared", f"{SHARE} % would be, and the shadow hangs")
    for place, name in enumerate(names, 1):
        ratios = [sum(round_[place][0]) / sum(round_[0][0]) for round_ in cpu]
        rows.append([name, f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}", quantiles(latencies, place)])
    return rows


def quantiles(latencies, place):
    p50, p99 = (statistics.median(seen[place][of] for seen in latencies) for of in ("p50", "p99"))
    return f"{p50:.3f} / {p99:.3f}"
