//! Where clients reach the router: its own Service.

use serde::Deserialize;

use super::objects::{Key, Partial};

/// The router's Service as it comes.
pub(super) type RawService = Partial<ServiceSpec, ServiceStatus>;

/// Of a Service's spec.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ServiceSpec {
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    port: u16,
    app_protocol: Option<String>,
}

/// Of a Service's status.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceStatus {
    #[serde(default)]
    load_balancer: LoadBalancer,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct LoadBalancer {
    #[serde(default)]
    ingress: Vec<Ingress>,
}

#[derive(Debug, Clone, Deserialize)]
struct Ingress {
    ip: Option<String>,
    hostname: Option<String>,
}

impl Port {
    fn is_https(&self) -> bool {
        self.port == 443 || self.name.as_deref() == Some("https") || self.app_protocol.as_deref() == Some("https")
    }
}

/// What scoring URIs begin with: the load balancer's address if there is one, or else the name inside the cluster; with
/// TLS if there is a port for it. `None`: it has no port.
pub(super) fn url(service: &RawService) -> Option<String> {
    let ports = &service.spec.as_ref()?.ports;
    let port = ports.iter().find(|port| port.is_https()).or(ports.first())?;
    let (scheme, usual) = if port.is_https() { ("https", 443) } else { ("http", 80) };
    let outside = service.status.iter().flat_map(|status| &status.load_balancer.ingress);
    let outside = outside.filter_map(|at| at.hostname.clone().or_else(|| Some(bracketed(at.ip.as_deref()?)))).next();
    let Key { namespace, name } = Key::of(service);
    let host = outside.unwrap_or_else(|| format!("{name}.{namespace}.svc"));
    Some(if port.port == usual { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{}", port.port) })
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(ports: &Value, ingress: &Value) -> Option<String> {
        let service = json!({
            "metadata": {"name": "router", "namespace": "serving"},
            "spec": {"type": "LoadBalancer", "ports": ports},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        url(&serde_json::from_value(service).unwrap())
    }

    #[test]
    fn clients_are_sent_to_the_load_balancer_or_inside_the_cluster_and_with_tls_if_they_can() {
        let http = json!([{"name": "http", "port": 80, "targetPort": "scoring"}]);
        let both = json!([{"name": "http", "port": 80}, {"name": "https", "port": 8443}]);
        let none = json!([]);
        assert_eq!(of(&http, &none).unwrap(), "http://router.serving.svc");
        assert_eq!(of(&json!([{"port": 8080}]), &none).unwrap(), "http://router.serving.svc:8080");
        assert_eq!(of(&json!([{"port": 443}]), &json!([{"ip": "192.0.2.7"}])).unwrap(), "https://192.0.2.7");
        assert_eq!(of(&both, &json!([{"hostname": "a.example", "ip": "::1"}])).unwrap(), "https://a.example:8443");
        assert_eq!(of(&http, &json!([{"ip": "2001:db8::7"}])).unwrap(), "http://[2001:db8::7]");
        assert_eq!(of(&none, &none), None);
    }

    #[test]
    fn a_service_without_a_load_balancer_is_read_too() {
        let plain =
            json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{"port": 80}]}, "status": {}});
        assert_eq!(url(&serde_json::from_value(plain).unwrap()).unwrap(), "http://a.b.svc");
    }
}
