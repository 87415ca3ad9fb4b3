"""What being one of several costs a router that has the slots it needs: the same load on a router alone, and on one of three
that share the replicas. CPU is that of the whole process, with what it says to the others.
"""
import json
import statistics
import urllib.request


def compare(options, load, run, costs, progress):
    """Rows of a table."""
    progress("three routers as one")
    alone = run("alone")
    group = [run(f"fleet-{number}", fleet="fleet-leader") for number in range(3)]
    # A member: the coordinator is the one that was first.
    member = group[1]
    before = moves(group[0])
    cpu = costs(options, load, alone, member, of=lambda router: [router.cpu()])
    moved = moves(group[0]) - before
    answered = sum(round_[1][1] for round_ in cpu)
    ratios = [sum(round_[1][0]) / sum(round_[0][0]) for round_ in cpu]
    return [["a router of three, of one alone", "median", "worst"],
            ["CPU per request, with slots enough", f"{statistics.median(ratios):.3f}", f"{max(ratios):.3f}"],
            ["slots moved per request", f"{moved / answered:.5f}", ""]]


def moves(router):
    """Slots that a coordinator has granted."""
    name = "inference_router_fleet_slot_moves_total"
    with urllib.request.urlopen(f"http://127.0.0.1:{router.ports.admin}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    with urllib.request.urlopen(f"http://127.0.0.1:{router.ports.admin}/api/endpoints", timeout=5) as answer:
        group = json.load(answer)["fleet"]
    if group["coordinator"] != group["router"] or len(group["members"]) != 3:
        raise SystemExit(f"this is no group of three with the first as its coordinator: {group}")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
