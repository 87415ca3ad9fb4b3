"""What being one of several costs a router that has the slots it needs: the same load on a router alone, and on one of three
that share the replicas. CPU is that of the whole process, with what it says to the others.
"""
import json
import statistics
import time
import urllib.request

# How long three routers may take to find each other.
PATIENCE = 20


def compare(options, load, run, costs, progress):
    """Rows of a table."""
    progress("three routers as one")
    alone = run("alone")
    group = [run(f"fleet-{number}", fleet="fleet-leader") for number in range(3)]
    coordinator, member = known(group)
    before = moves(coordinator)
    cpu = costs(options, load, alone, member, of=lambda router: [router.cpu()])
    moved = moves(coordinator) - before
    answered = sum(round_[1][1] for round_ in cpu)
    ratios = [sum(round_[1][0]) / sum(round_[0][0]) for round_ in cpu]
    return [["a router of three, of one alone", "median", "worst"],
            ["CPU per request, with slots enough", f"{statistics.median(ratios):.3f}", f"{max(ratios):.3f}"],
            ["slots moved per request", f"{moved / answered:.5f}", ""]]


def known(group):
    """The coordinator and a member, once all know each other."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        seen = [json.loads(ask(router, "/api/endpoints"))["fleet"] for router in group]
        leads = [router for router, fleet in zip(group, seen) if fleet["coordinator"] == fleet["router"] != ""]
        if len(leads) == 1 and all(len(fleet["members"]) == len(group) for fleet in seen):
            return leads[0], next(router for router in group if router is not leads[0])
        time.sleep(0.1)
    raise SystemExit(f"these do not make a group of three: {seen}")


def moves(router):
    """Slots that a coordinator has granted."""
    lines = ask(router, "/metrics").splitlines()
    name = "inference_router_fleet_slots_granted_total"
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def ask(router, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{router.ports.admin}{path}", timeout=5) as answer:
        return answer.read().decode()
