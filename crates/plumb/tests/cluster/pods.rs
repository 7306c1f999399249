//! What a cluster cannot do without: pods get addresses, reach each other, Services and names, and the world.

use crate::ask::{at, peer, url};
use crate::cluster::{Cluster, Namespace, server};

on_each_stack!(pods_reach_pods_services_and_names);

const ECHO: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ipFamilyPolicy: PreferDualStack
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

fn pods_reach_pods_services_and_names(cluster: &Cluster) {
    let ns = world(cluster, "pods");
    for client in ["client1", "client2"] {
        let own = ns.pod_ips(client);
        for server in ["echo1", "echo2"] {
            let addresses = ns.pod_ips(server);
            assert_eq!(addresses.len(), cluster.service_families(), "{server}: {addresses:?}");
            for address in addresses {
                let said = ns.demo_ok(client, &["get", &url(&address, 8080)]);
                assert!(said.contains(&format!("name={server} ")), "{said}");
                assert!(own.contains(&peer(&said)), "the server sees the pod itself: {said}");
            }
        }
        for address in ns.service_ips("echo") {
            let said = ns.until_demo(client, &["get", &url(&address, 80)]);
            assert!(said.contains("name=echo"), "{said}");
            let said = ns.until_demo(client, &["udp", &at(&address, 9001)]);
            assert!(said.contains("name=echo"), "{said}");
        }
        for name in ["echo", &format!("echo.{}", ns.name), &format!("echo.{}.svc.cluster.local", ns.name)] {
            let said = ns.until_demo(client, &["get", &format!("http://{name}/")]);
            assert!(said.contains("name=echo"), "{said}");
        }
        let said = ns.until_demo(client, &["udp", "echo:9001"]);
        assert!(said.contains("name=echo"), "{said}");
    }
}
