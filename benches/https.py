"""HTTPS in front of the same duty: what a request on a kept connection costs, and what a handshake does.

All end TLS with the same ECDSA P-256 certificate, in the version and with the cipher that they settle on with the same
client: TLS 1.3 everywhere. For handshakes, which are all full ones, the client offers X25519 alone: the router would
otherwise do the post-quantum X25519MLKEM768, which OpenSSL before 3.5 does not have.
"""
import http.client
import json
import pathlib
import ssl
import statistics
import subprocess
import sys

from contenders import KEY, PATH

HERE = pathlib.Path(__file__).resolve().parent
# Envoy's configuration here has no TLS.
CONTENDERS = ("inference-router", "nginx", "haproxy")
# Requests on a kept connection, where there is no wrk.
KEPT = 1000


def compare(options, load, run, programs, wanted, scratch, progress):
    """Rows of a table."""
    progress("building the client for handshakes")
    subprocess.run(["cargo", "build", "--quiet", "--example", "handshakes"], check=True, cwd=HERE.parent)
    client = HERE.parent / "target" / "debug" / "examples" / "handshakes"
    tls = scratch / "tls"
    tls.mkdir()
    load.run([client, "certificate", tls])
    names = [name for name in CONTENDERS if name in wanted and programs[name][0]]
    contenders = {name: run(f"https-{name}", *programs[name], tls=tls) for name in names}
    agreed = {name: check(name, contender.ports.listen) for name, contender in contenders.items()}
    costs = {name: ([], []) for name in names}
    for number in range(options.rounds):
        progress(f"HTTPS, round {number + 1} of {options.rounds}")
        # Another one first in the next round: nobody always follows the same.
        for name in names[number % len(names):] + names[:number % len(names)]:
            kept, handshakes = costs[name]
            def drive(port, requests):
                target = [f"127.0.0.1:{port}", PATH, KEY, 16, options.seconds, requests]
                return json.loads(load.run([client, "load", tls / "tls.crt", *target], options.seconds))

            def keep(port):
                return load.saturate(port, options.seconds, "https") if load.wrk else drive(port, KEPT)

            kept.append(cost(contenders[name], keep) * 1e6)
            handshakes.append(1 / cost(contenders[name], lambda port: drive(port, 1)))
    rows = [["HTTPS", "CPU µs per request on kept connections (of nginx)", "full handshakes per CPU second (of nginx)",
             "settled on"]]
    for name in names:
        row = [name]
        for what, digits in ((0, 1), (1, 0)):
            measured = costs[name][what]
            base = statistics.median(costs["nginx"][what]) if "nginx" in names else None
            median = statistics.median(measured)
            row.append(f"{median:.{digits}f}" + (f" ({median / base:.2f})" if base else ""))
        rows.append([*row, agreed[name]])
    return rows


def cost(contender, drive):
    """CPU seconds for each request that is answered."""
    before = contender.cpu()
    seen = drive(contender.ports.listen)
    if seen["failed"] or not seen["ok"]:
        sys.exit(f"over HTTPS {seen['failed']} requests failed, {seen['ok']} did not")
    return (contender.cpu() - before) / seen["ok"]


def check(name, port):
    """Does its duty; says what was settled."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for key, expected in ((None, 401), (KEY, 200)):
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        connection.request("POST", PATH, "{}", {"authorization": f"Bearer {key}"} if key else {})
        settled = f"{connection.sock.version()}, {connection.sock.cipher()[0]}"
        status = connection.getresponse().status
        if status != expected:
            sys.exit(f"{name} answers {status} over HTTPS instead of {expected}")
    return settled
