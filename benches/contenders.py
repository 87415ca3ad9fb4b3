"""The contenders of compare.py: the same duty in the words of each. Each function writes a configuration into a folder
and returns the arguments of the program.

The duty: POST of a path on kept connections; 401 without the right authorization header; a fresh x-request-id; 90 % to
one model and 10 % to another, as /score, on kept connections; bodies as they come, both ways; one core; no log. With
`tls`, a folder with tls.crt and tls.key, the same over HTTPS.
"""
import json
import os

KEY = "bench-key-0123456789abcdef0123456789abcdef"
PATH = "/api/v1/endpoint/my-endpoint/score"


def router(folder, ports, workers=1, endpoints=1, tls=None, mirror=None, comparison=False, fleet=None):
    (folder / "endpoints").mkdir(parents=True)
    for number in range(endpoints):
        write_endpoint(folder, ports, number, mirror=mirror, comparison=comparison)
    certificate = f", tls: {{certFolder: {tls}}}" if tls else ""
    # One of several, who meet where it says.
    group = f"""fleet: {{peer: {{address: "127.0.0.1:{ports.peer}"}}, leaderLock: {{file: {folder.parent / fleet}}}}}
""" if fleet else ""
    (folder / "router.yaml").write_text(group + f"""\
scoring: {{address: "127.0.0.1:{ports.listen}"{certificate}}}
admin: {{address: "127.0.0.1:{ports.admin}"}}
workers: {workers}
shutdown: {{unreadyDelay: 0s, drainTimeout: 1s}}
endpoints: {{files: ["endpoints/"]}}
log: {{access: false, level: warn}}
""")
    return ["serve", "--config", folder / "router.yaml"]


def write_endpoint(folder, ports, number, traffic="{blue: 90, green: 10}", mirror=None, comparison=False):
    """The first is the one that is measured; the others have five replicas that are never called. `mirror`: percent that
    are copied, to a shadow at this port, which takes so many at once; `comparison`: of both answers."""
    name, blue, green = "my-endpoint", [f"127.0.0.1:{ports.blue}"], [f"127.0.0.1:{ports.green}"]
    if number > 0:
        replicas = [f"127.1.{number // 250}.{number % 250 + 1}:{port}" for port in range(5001, 5006)]
        name, blue, green = f"endpoint-{number}", replicas[:3], replicas[3:]
    percent, port, slots = mirror or (0, 0, 0)
    rule = f"mirrorTraffic: {{shadow: {percent}}}" if mirror else ""
    compared = "mirrorComparison: {}" if comparison else ""
    shadow = f"""- {{name: shadow, instances: ["127.0.0.1:{port}"], scoringPath: /score,
     requestSettings: {{maxConcurrentRequestsPerInstance: {slots}}}}}""" if mirror else ""
    file = folder / "endpoints" / f"{name}.yaml"
    # Beside it, then over it: never seen half written.
    file.with_suffix(".new").write_text(f"""\
apiVersion: inference-router.dev/v1alpha1
kind: OnlineEndpoint
metadata: {{name: {name}}}
spec:
  keys: {{primary: {{value: {KEY}}}}}
  traffic: {traffic}
  {rule}
  {compared}
  deployments:
  - {{name: blue, instances: {json.dumps(blue)}, requestSettings: {{maxConcurrentRequestsPerInstance: 512}}}}
  - {{name: green, instances: {json.dumps(green)}, requestSettings: {{maxConcurrentRequestsPerInstance: 512}}}}
  {shadow}
""")
    file.with_suffix(".new").replace(file)


def nginx(folder, ports, tls=None):
    # TLS 1.3 was off by default for long.
    files = f"ssl_certificate {tls}/tls.crt; ssl_certificate_key {tls}/tls.key;"
    certificate = f"{files} ssl_protocols TLSv1.2 TLSv1.3;" if tls else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"  {kind}_temp_path {folder};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(f"""\
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit; {user}
events {{ worker_connections 4096; }}
http {{
{temporary}
  access_log off;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  client_body_buffer_size 64k;
  map_hash_bucket_size 128;
  map $http_authorization $allowed {{ "Bearer {KEY}" 1; default 0; }}
  split_clients $request_id $deployment {{ 90% blue; * green; }}
  upstream blue {{ server 127.0.0.1:{ports.blue}; keepalive 512; keepalive_requests 1000000000; }}
  upstream green {{ server 127.0.0.1:{ports.green}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{ports.listen}{" ssl" if tls else ""};
    {certificate}
    location = {PATH} {{
      if ($allowed = 0) {{ return 401; }}
      proxy_pass http://$deployment/score;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header X-Request-Id $request_id;
      proxy_request_buffering off;
      proxy_buffering off;
    }}
  }}
}}
""")
    return ["-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]


def haproxy(folder, ports, tls=None):
    if tls:
        pem = "".join((tls / name).read_text() for name in ("tls.crt", "tls.key"))
        (folder / "tls.pem").write_text(pem)
    (folder / "haproxy.cfg").write_text(f"""\
global
  nbthread 1
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend scoring
  bind 127.0.0.1:{ports.listen}{f" ssl crt {folder}/tls.pem" if tls else ""}
  http-request return status 404 unless {{ path {PATH} }}
  http-request return status 401 unless {{ req.hdr(authorization) -m str "Bearer {KEY}" }}
  http-request set-header x-request-id %[uuid()]
  http-request set-path /score
  default_backend models
backend models
  balance roundrobin
  http-reuse always
  server blue 127.0.0.1:{ports.blue} weight 90 pool-max-conn 512
  server green 127.0.0.1:{ports.green} weight 10 pool-max-conn 512
""")
    return ["-db", "-f", folder / "haproxy.cfg"]


def envoy(folder, ports):
    def address(port):
        return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}

    def cluster(name, port):
        endpoints = [{"lb_endpoints": [{"endpoint": address(port)}]}]
        return {"name": name, "type": "STATIC", "connect_timeout": "2s",
                "load_assignment": {"cluster_name": name, "endpoints": endpoints}}

    def typed(kind, **fields):
        return {"@type": f"type.googleapis.com/envoy.extensions.filters.{kind}"} | fields

    allowed = {"name": "authorization", "string_match": {"exact": f"Bearer {KEY}"}}
    weighted = {"clusters": [{"name": "blue", "weight": 90}, {"name": "green", "weight": 10}]}
    routes = [
        {"match": {"path": PATH, "headers": [allowed]},
         "route": {"weighted_clusters": weighted, "prefix_rewrite": "/score", "timeout": "60s"}},
        {"match": {"path": PATH}, "direct_response": {"status": 401}},
    ]
    manager = typed(
        "network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="scoring", generate_request_id=True,
        route_config={"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": routes}]},
        http_filters=[{"name": "router", "typed_config": typed("http.router.v3.Router")}])
    listener = address(ports.listen) | {"filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}
    clusters = [cluster("blue", ports.blue), cluster("green", ports.green)]
    config = {"static_resources": {"listeners": [listener], "clusters": clusters}}
    (folder / "envoy.json").write_text(json.dumps(config))
    return ["-c", folder / "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "off"]
