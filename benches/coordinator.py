#!/usr/bin/env python3
"""What a coordinator costs at 20,000 slot moves a second: a real router coordinates, and three members that are only
protocol ask for all the slots there are, over connections as real ones. Each slot goes back when a request of about 50 ms
would have ended, and to whoever waits longest. CPU is that of the coordinator's process, everything included.

    cargo build --release && benches/coordinator.py
"""
import argparse
import asyncio
import contextlib
import heapq
import itertools
import json
import pathlib
import random
import socket
import subprocess
import tempfile
import time
import urllib.request

MEMBERS = 3
# Seconds that a request takes, on average.
TAKES = 0.05
# Requests that wait at each member, of each deployment: more than there will ever be slots.
WAITING = 5000
# Deployments, replicas of each, and slots of each replica: 1,000 slots in all, 20,000 moves a second at most.
SHAPES = [(1, 100, 10), (50, 10, 2), (100, 2, 5)]
# Seconds until all members have come and slots go round.
WARM_UP = 3
BEAT = 0.5


class Member:
    """One that is always hungry. What is said is as in src/policy/fleet.rs."""

    def __init__(self, address, deployments):
        self.address, self.granted = address, dict.fromkeys(deployments, 0)
        # When slots go back, and which.
        self.busy, self.order = [], itertools.count()
        self.epoch, self.beat, self.answered = 1, 1, 1
        self.said = self.heard = 0

    async def run(self, coordinator):
        self.ear, self.mouth = await asyncio.open_connection(*coordinator)
        self.say({"secret": "", "member": {"name": self.address, "incarnation": 1}})
        await self.hear()
        self.say({"Hello": {"term": self.epoch, "session": 1, "heartbeat": self.beat, "claims": [], "unusable": [],
                            "demand": self.demand(self.granted), "loads": []}})
        both = asyncio.gather(self.listen(), self.report())
        try:
            await both
        finally:
            both.cancel()
            await asyncio.gather(both, return_exceptions=True)

    def say(self, message):
        text = json.dumps(message).encode()
        self.mouth.write(len(text).to_bytes(4, "big") + text)
        self.said += 1

    async def hear(self):
        length = int.from_bytes(await self.ear.readexactly(4), "big")
        self.heard += 1
        return json.loads(await self.ear.readexactly(length))

    def demand(self, deployments):
        zero, old = {"secs": 0, "nanos": 0}, {"secs": 0, "nanos": 20_000_000}
        return [{"deployment": deployment, "queued": WAITING, "oldest_age": old, "newest_age": zero,
                 "grants_seen": self.granted[deployment]} for deployment in deployments]

    def tell(self, returned, deployments, beat=None):
        if deployments or beat:
            self.say({"Report": {"term": self.epoch, "session": 1, "heartbeat": beat, "returned": returned, "unusable_changes": [],
                                 "demand": self.demand(deployments), "loads": []}})

    async def listen(self):
        while True:
            kind, message = next(iter((await self.hear()).get("message", {"Overview": None}).items()))
            if kind == "Welcome":
                self.epoch, self.answered = message["term"], message["heartbeat"]
            elif kind == "Update":
                self.answered = message["heartbeat"] or self.answered
                now = time.monotonic()
                for replica, slots in message["granted"]:
                    self.granted[replica["deployment"]] += slots
                    ends = now + TAKES * random.uniform(0.5, 1.5)
                    heapq.heappush(self.busy, (ends, next(self.order), replica, slots))
                # More are granted when it is known that these have arrived.
                self.tell([], {replica["deployment"] for replica, _ in message["granted"]})
            elif kind == "Refused":
                raise SystemExit(f"{self.address} was refused: {message}")

    async def report(self):
        beaten = time.monotonic()
        while True:
            now, returned, beat = time.monotonic(), [], None
            while self.busy and self.busy[0][0] <= now:
                returned.append(heapq.heappop(self.busy)[2:])
            if now > beaten + BEAT:
                beaten, self.beat = now, self.beat + 1
                beat = {"number": self.beat, "last_answered": self.answered}
            self.tell(returned, {replica["deployment"] for replica, _ in returned}, beat)
            rest = self.busy[0][0] - time.monotonic() if self.busy else 0.01
            await asyncio.sleep(max(rest, 0))


class Coordinator:
    """A router that is one of several, of which no other runs."""

    def __init__(self, program, folder, shape):
        self.ports = [free_port() for _ in range(3)]
        scoring, admin, peer = self.ports
        self.deployments = [f"bench{number}/blue" for number in range(shape[0])]
        write(folder, shape)
        (folder / "router.yaml").write_text(
            f'scoring: {{address: "127.0.0.1:{scoring}"}}\nadmin: {{address: "127.0.0.1:{admin}"}}\nworkers: 1\n'
            f'endpoints: {{files: [endpoints/]}}\nfleet: {{peer: {{address: "127.0.0.1:{peer}"}}, leaderLock: {{file: leader}}}}\n')
        self.log = open(folder / "log", "w")
        self.process = subprocess.Popen([program, "serve", "--config", folder / "router.yaml"], stdout=self.log, stderr=self.log)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def cpu(self):
        """Seconds, of user and system."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[1]}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"inference_router_fleet_{name}"))

    def moves(self):
        return self.metric("slots_granted_total")

    def coordinates(self):
        """Whoever comes before is sent away."""
        with contextlib.suppress(OSError):
            return self.metric("coordinator") == 1
        return False


def write(folder, shape):
    """Endpoints with replicas that nobody ever connects to."""
    deployments, replicas, cap = shape
    (folder / "endpoints").mkdir()
    addresses = (f"127.{1 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}:9" for number in itertools.count())
    for number in range(deployments):
        instances = ", ".join(f'"{next(addresses)}"' for _ in range(replicas))
        (folder / f"endpoints/bench{number}.yaml").write_text(
            f"apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: bench{number}}}\n"
            f"spec:\n  authMode: none\n  traffic: {{blue: 100}}\n  deployments:\n  - name: blue\n"
            f"    instances: [{instances}]\n    requestSettings: {{maxConcurrentRequestsPerInstance: {cap}}}\n")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def measure(program, shape, seconds):
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator(program, pathlib.Path(folder), shape)
        try:
            deadline = time.monotonic() + 20
            while not await asyncio.to_thread(coordinator.coordinates):
                if time.monotonic() > deadline:
                    raise SystemExit((pathlib.Path(folder) / "log").read_text())
                await asyncio.sleep(0.05)
            members = [Member(f"127.0.0.1:{free_port()}", coordinator.deployments) for _ in range(MEMBERS)]
            address = ("127.0.0.1", coordinator.ports[2])
            running = asyncio.gather(*(member.run(address) for member in members))
            measuring = asyncio.create_task(count(coordinator, members, seconds))
            await asyncio.wait([running, measuring], return_when=asyncio.FIRST_COMPLETED)
            if not measuring.done():
                measuring.cancel()
                await running
                raise SystemExit("the members have ended")
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            return measuring.result()
        finally:
            coordinator.end()


async def count(coordinator, members, seconds):
    """Moves a second, cores, and messages a second, both ways."""
    async def now():
        messages = sum(member.said + member.heard for member in members)
        return time.monotonic(), await asyncio.to_thread(coordinator.moves), coordinator.cpu(), messages

    await asyncio.sleep(WARM_UP)
    before = await now()
    await asyncio.sleep(seconds)
    took, moves, cpu, messages = (after - earlier for after, earlier in zip(await now(), before))
    return moves / took, cpu / took, messages / took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--router", default=root / "target/release/inference-router", help="the program")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    options = parser.parse_args()
    print("| deployments x replicas x slots | moves/s | messages/s | cores | us a move |\n|---|---|---|---|---|")
    for shape in SHAPES:
        moves, cores, messages = asyncio.run(measure(options.router, shape, options.seconds))
        if moves < 1:
            raise SystemExit(f"no slot has moved: {shape}")
        name = " x ".join(str(number) for number in shape)
        print(f"| {name} | {moves:,.0f} | {messages:,.0f} | {cores:.2f} | {cores / moves * 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
