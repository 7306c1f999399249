//! What a cluster cannot do without: pods get addresses, reach each other, Services and names, and the world.

use crate::cluster::{self, Cluster, Namespace, server};

const ECHO: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: udp, port: 9001, protocol: UDP}]
";

/// Two servers and a client on each node, Service `echo` before the servers.
fn world<'a>(cluster: &'a Cluster, word: &str) -> Namespace<'a> {
    let ns = cluster.namespace(word);
    ns.apply(&[
        ECHO,
        &server("echo1", "node1"),
        &server("echo2", "node2"),
        &server("client1", "node1"),
        &server("client2", "node2"),
    ]);
    ns.wait_ready();
    ns
}

#[test]
fn pods_reach_pods_services_and_names() {
    let ns = world(cluster::single(), "pods");
    for client in ["client1", "client2"] {
        let own = ns.pod_ip(client);
        for server in ["echo1", "echo2"] {
            let said = ns.demo_ok(client, &["get", &format!("http://{}:8080/", ns.pod_ip(server))]);
            assert!(said.contains(&format!("name={server} ")), "{said}");
            assert!(said.contains(&format!("peer={own}:")), "the server sees the pod itself: {said}");
        }
        for name in ["echo", &format!("echo.{}", ns.name), &format!("echo.{}.svc.cluster.local", ns.name)] {
            let said = ns.until_demo(client, &["get", &format!("http://{name}/")]);
            assert!(said.contains("name=echo"), "{said}");
        }
        let said = ns.until_demo(client, &["udp", "echo:9001"]);
        assert!(said.contains("name=echo"), "{said}");
    }
}

/// Both addresses of a pod reach both of another, on the same node and across.
#[test]
fn dual_stack_pods_reach_pods_in_both_families() {
    let ns = world(cluster::dual(), "dual");
    for client in ["client1", "client2"] {
        for server in ["echo1", "echo2"] {
            let addresses = ns.pod_ips(server);
            assert_eq!(addresses.len(), 2, "{server}: {addresses:?}");
            for address in addresses {
                let host = if address.contains(':') { format!("[{address}]") } else { address };
                let said = ns.until_demo(client, &["get", &format!("http://{host}:8080/")]);
                assert!(said.contains(&format!("name={server} ")), "{said}");
            }
        }
    }
}
