use super::*;
use crate::result::{Dns, Interface, Ip, Route, Success};

const CONFIG: &str =
    r#"{"cniVersion":"1.1.0","name":"plumb","type":"plumb-cni","capabilities":{"ips":true}}"#;

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn add_env(command: &str) -> Env {
    env(&[
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1;FOO=bar"),
    ])
}

fn code(env: &Env, stdin: &str) -> u32 {
    Request::parse(env, stdin.as_bytes()).map_or_else(|(error, _)| error.code as u32, |_| 0)
}

#[test]
fn an_add_is_read_whole() {
    let Ok(Request::Add(add)) = Request::parse(&add_env("ADD"), CONFIG.as_bytes()) else { panic!("no ADD") };
    assert_eq!(add.id.to_string(), "c1/eth0");
    assert_eq!(add.netns.as_deref(), Some("/run/netns/x"));
    let pod = add.pod.unwrap();
    assert_eq!((pod.name.to_string().as_str(), pod.uid.as_str()), ("shop/web", "u1"));
}

#[test]
fn missing_variables_are_code_4_and_all_named() {
    let mut partial = add_env("ADD");
    partial.remove("CNI_NETNS");
    partial.insert("CNI_IFNAME".into(), String::new());
    let (error, _) = Request::parse(&partial, CONFIG.as_bytes()).unwrap_err();
    assert_eq!(error.code, Code::InvalidEnvironment);
    assert!(error.msg.contains("CNI_IFNAME, CNI_NETNS"), "{error}");
    assert_eq!(code(&env(&[]), CONFIG), 4);
    assert_eq!(code(&env(&[("CNI_COMMAND", "FROB")]), CONFIG), 4);
}

#[test]
fn a_missing_cni_path_is_no_error_and_del_needs_no_netns() {
    let mut del = add_env("DEL");
    del.remove("CNI_NETNS");
    assert_eq!(code(&del, CONFIG), 0);
}

#[test]
fn names_that_would_leave_their_directory_are_refused() {
    for (name, value) in [
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
    ] {
        let mut bad = add_env("ADD");
        bad.insert(name.into(), value.into());
        assert_eq!(code(&bad, CONFIG), 4, "{name}={value}");
    }
    assert_eq!(code(&add_env("ADD"), r#"{"cniVersion":"1.1.0","name":"a/b"}"#), 7);
}

#[test]
fn bad_input_has_the_specifications_codes() {
    for (stdin, expected) in [
        ("{", 6),
        ("[]", 6),
        (r#"{"cniVersion":"9.9.9","name":"n"}"#, 1),
        (r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"ips":["x"]}}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"mac":"x"}}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":"n","prevResult":{"ips":[{"address":"x"}]}}"#, 7),
        (r#"{"cniVersion":"1.1.0","name":"n","futureField":{"a":1}}"#, 0),
    ] {
        assert_eq!(code(&add_env("ADD"), stdin), expected, "{stdin}");
    }
}

#[test]
fn arguments_are_strict_only_without_ignore_unknown() {
    let mut strict = add_env("ADD");
    strict.insert("CNI_ARGS".into(), "FOO=bar".into());
    assert_eq!(code(&strict, CONFIG), 4);
    strict.insert("CNI_ARGS".into(), "nonsense".into());
    assert_eq!(code(&strict, CONFIG), 4);
    strict.insert("CNI_ARGS".into(), "IP=10.244.1.9;MAC=0a:58:0a:f4:01:09".into());
    let Ok(Request::Add(add)) = Request::parse(&strict, CONFIG.as_bytes()) else { panic!("no ADD") };
    assert_eq!((add.ips.len(), add.mac.is_some(), add.pod), (1, true, None));
}

#[test]
fn the_config_overrides_the_arguments() {
    let mut with_ip = add_env("ADD");
    with_ip.insert("CNI_ARGS".into(), "IP=10.244.1.9".into());
    let config = r#"{"cniVersion":"1.1.0","name":"n","args":{"cni":{"ips":["10.244.1.7/24"]}}}"#;
    let Ok(Request::Add(add)) = Request::parse(&with_ip, config.as_bytes()) else { panic!("no ADD") };
    assert_eq!(add.ips, ["10.244.1.7".parse::<IpAddr>().unwrap()]);
}

#[test]
fn verbs_exist_only_from_their_version_on() {
    for (command, version, expected) in [
        ("CHECK", "0.3.1", 1),
        ("CHECK", "0.4.0", 7),
        ("GC", "1.0.0", 1),
        ("GC", "1.1.0", 0),
        ("STATUS", "1.0.0", 1),
        ("STATUS", "1.1.0", 0),
        ("DEL", "0.3.0", 0),
    ] {
        let config = format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
        assert_eq!(code(&add_env(command), &config), expected, "{command} {version}");
    }
}

#[test]
fn gc_tells_absent_from_empty_and_knows_the_older_key() {
    let valid = |extra: &str| {
        let config = format!(r#"{{"cniVersion":"1.1.0","name":"n"{extra}}}"#);
        match Request::parse(&env(&[("CNI_COMMAND", "GC")]), config.as_bytes()) {
            Ok(Request::Gc(gc)) => gc.valid.map(|ids| ids.len()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(valid(""), None);
    assert_eq!(valid(r#","cni.dev/valid-attachments":[]"#), Some(0));
    assert_eq!(valid(r#","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]"#), Some(1));
}

#[test]
fn version_answers_in_the_version_that_was_asked() {
    let ask = |stdin: &str| match Request::parse(&env(&[("CNI_COMMAND", "VERSION")]), stdin.as_bytes()) {
        Ok(Request::Version(version)) => Request::versions(version),
        other => panic!("{other:?}"),
    };
    let supported = r#""supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]"#;
    assert_eq!(ask(r#"{"cniVersion":"0.4.0"}"#), format!(r#"{{"cniVersion":"0.4.0",{supported}}}"#));
    assert_eq!(ask(""), format!(r#"{{"cniVersion":"1.1.0",{supported}}}"#));
    assert_eq!(ask(r#"{"cniVersion":"9.0.0"}"#), format!(r#"{{"cniVersion":"1.1.0",{supported}}}"#));
}

#[test]
fn errors_are_rendered_in_the_configs_version() {
    let config = r#"{"cniVersion":"0.4.0","name":"a/b"}"#;
    let (error, version) = Request::parse(&add_env("ADD"), config.as_bytes()).unwrap_err();
    let json: Value = serde_json::from_str(&error.render(version)).unwrap();
    assert_eq!((json["cniVersion"].as_str(), json["code"].as_u64()), (Some("0.4.0"), Some(7)));
    assert!(json["msg"].is_string() && json["details"].is_string());
}

fn wired() -> Success {
    Success {
        interfaces: vec![
            Interface {
                name: "veth1".into(),
                mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                mtu: Some(1450),
                sandbox: None,
            },
            Interface {
                name: "eth0".into(),
                mac: Some(Mac([10, 88, 10, 244, 1, 4])),
                mtu: Some(1450),
                sandbox: Some("/run/netns/x".into()),
            },
        ],
        ips: vec![Ip {
            address: "10.244.1.4/32".parse().unwrap(),
            gateway: Some("10.244.1.1".parse().unwrap()),
            interface: Some(1),
        }],
        routes: vec![Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            gw: Some("10.244.1.1".parse().unwrap()),
            mtu: Some(1450),
        }],
        dns: Dns::default(),
    }
}

#[test]
fn results_are_what_each_version_wants() {
    let host = r#"{"mac":"02:00:00:00:00:01","name":"veth1"}"#;
    let pod = r#"{"mac":"0a:58:0a:f4:01:04","name":"eth0","sandbox":"/run/netns/x"}"#;
    let route = r#"[{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]"#;
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let ip = r#"{"address":"10.244.1.4/32","gateway":"10.244.1.1","interface":1,"version":"4"}"#;
        let golden = format!(
            r#"{{"cniVersion":"{version}","dns":{{}},"interfaces":[{host},{pod}],"ips":[{ip}],"routes":{route}}}"#
        );
        assert_eq!(wired().render(Version::parse(version).unwrap()), golden);
    }
    let ip = r#"{"address":"10.244.1.4/32","gateway":"10.244.1.1","interface":1}"#;
    let golden = format!(
        r#"{{"cniVersion":"1.0.0","dns":{{}},"interfaces":[{host},{pod}],"ips":[{ip}],"routes":{route}}}"#
    );
    assert_eq!(wired().render(Version::V1_0_0), golden);
    let host = r#"{"mac":"02:00:00:00:00:01","mtu":1450,"name":"veth1"}"#;
    let pod = r#"{"mac":"0a:58:0a:f4:01:04","mtu":1450,"name":"eth0","sandbox":"/run/netns/x"}"#;
    let route = r#"[{"dst":"0.0.0.0/0","gw":"10.244.1.1","mtu":1450}]"#;
    let golden = format!(
        r#"{{"cniVersion":"1.1.0","dns":{{}},"interfaces":[{host},{pod}],"ips":[{ip}],"routes":{route}}}"#
    );
    assert_eq!(wired().render(Version::V1_1_0), golden);
    let old =
        r#"{"gateway":"10.244.1.1","ip":"10.244.1.4/32","routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]}"#;
    assert_eq!(
        wired().render(Version::V0_2_0),
        format!(r#"{{"cniVersion":"0.2.0","dns":{{}},"ip4":{old}}}"#)
    );
}

#[test]
fn a_result_comes_back_as_prev_result_in_every_version() {
    for version in Version::ALL.into_iter().filter(|version| *version >= Version::V0_3_0) {
        let raw: Value = serde_json::from_str(&wired().render(version)).unwrap();
        let mut expected = wired();
        if version < Version::V1_1_0 {
            expected.interfaces.iter_mut().for_each(|interface| interface.mtu = None);
            expected.routes.iter_mut().for_each(|route| route.mtu = None);
        }
        assert_eq!(Success::parse(&raw, version), Ok(expected), "{version}");
    }
}

#[test]
fn host_ports_are_read_from_the_capability() {
    let ports = |mappings: &str| {
        let config = format!(
            r#"{{"cniVersion":"1.1.0","name":"n","type":"t","runtimeConfig":{{"portMappings":{mappings}}}}}"#
        );
        Config::parse(config.as_bytes()).map(|config| config.runtime.ports)
    };
    let read = ports(
        r#"[{"hostPort":8080,"containerPort":80,"protocol":"udp","hostIP":"192.168.1.10"},
            {"hostPort":0,"containerPort":81},{"containerPort":83},
            {"hostPort":8082,"containerPort":82,"hostIP":""}]"#,
    )
    .expect("readable");
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].protocol, read[0].host_ip), (types::Protocol::Udp, "192.168.1.10".parse().ok()));
    assert_eq!((read[1].protocol, read[1].host_ip), (types::Protocol::Tcp, None));
    // As containerd writes it.
    let read = ports(r#"[{"HostPort":18081,"ContainerPort":8080,"Protocol":"tcp","HostIP":"127.0.0.1"}]"#);
    let expected = crate::PortMapping {
        host_port: 18081,
        container_port: 8080,
        protocol: types::Protocol::Tcp,
        host_ip: "127.0.0.1".parse().ok(),
    };
    assert_eq!(read.expect("readable"), [expected]);
    let bad = [
        r#"[{"hostPort":70000,"containerPort":1}]"#,
        r#"[{"hostPort":1}]"#,
        r#"[{"hostPort":1,"containerPort":0}]"#,
        "{}",
    ];
    for bad in bad {
        assert!(ports(bad).is_err(), "{bad}");
    }
}
