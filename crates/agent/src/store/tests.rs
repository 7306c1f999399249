use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use model::HostPort;
use types::wire::NETWORK;
use types::{Family, IfName, IpNet, Mac, ObjectName, Wiring};

use super::*;

/// The files, and what they should hold.
#[derive(Debug)]
struct Opened {
    files: Store,
    records: Records,
}

impl Opened {
    fn save(&mut self) -> Result<()> {
        self.files.save(&self.records)
    }
}

impl Deref for Opened {
    type Target = Records;

    fn deref(&self) -> &Records {
        &self.records
    }
}

impl DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut Records {
        &mut self.records
    }
}

fn open(directory: &Path, boot: &str) -> Result<Opened> {
    Store::open(directory, boot).map(|(files, records)| Opened { files, records })
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("plumb-store-{name}-{}", std::process::id())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(container: &str, ip: IpAddr) -> Record {
    Record {
        container: container.into(),
        ifname: IfName::new("eth0").unwrap(),
        network: NETWORK.into(),
        netns: "/proc/7/ns/net".into(),
        netns_id: Some((4, 4_026_532_008)),
        pod: ObjectName::new("shop", "web"),
        uid: "u".into(),
        ips: vec![ip],
        wiring: Wiring::Bridge,
        host_if: IfName::new("veth1").unwrap(),
        mac: Mac::default(),
        host_ports: vec![HostPort {
            protocol: types::Protocol::Udp,
            port: 53,
            container_port: 5353,
            host_ip: Some(ip),
        }],
        grace: 30,
        cut_off: false,
        further: Vec::new(),
    }
}

#[test]
fn a_killed_agent_comes_back_with_the_same_attachments() {
    let dir = Dir::new("same");
    let mut store = open(&dir.0, "boot1\n").unwrap();
    let mut pool = Pool::new("10.244.1.0/24".parse().unwrap(), Duration::from_secs(30));
    let ip = pool.allocate("c1/eth0", Duration::ZERO).unwrap();
    store.pools_mut().push(pool.clone());
    store.insert(record("c1", ip));
    store.save().unwrap();
    let mut again = open(&dir.0, "boot1").unwrap();
    assert_eq!(again.all().get("c1/eth0"), Some(&record("c1", ip)));
    assert_eq!(again.pool_mut(Family::V4), Some(&mut pool));
}

/// What an agent wrote when nodes had one family: an upgrade must not take addresses from pods that run.
const FORMER: &str = r#"{"pool":{"cidr":"10.244.1.0/24","cool_down":{"secs":30,"nanos":0},"leases":{"10.244.1.2":"c1/eth0"},"resting":{"10.244.1.3":{"secs":1700000000,"nanos":0}},"last":"10.244.1.3"},"records":{"c1/eth0":{"container":"c1","ifname":"eth0","netns":"/proc/7/ns/net","pod":{"namespace":"shop","name":"web"},"uid":"u","ips":["10.244.1.2"],"host_if":"veth1","mac":"00:00:00:00:00:00"}}}"#;

#[test]
fn the_file_of_an_earlier_agent_is_read_and_written_anew() {
    let dir = Dir::new("former");
    fs::create_dir_all(&dir.0).unwrap();
    fs::write(dir.0.join("attachments-b.json"), FORMER).unwrap();
    let mut store = open(&dir.0, "b").unwrap();
    let ip = "10.244.1.2".parse().unwrap();
    let former = Record { host_ports: Vec::new(), netns_id: None, grace: 0, ..record("c1", ip) };
    assert_eq!(store.all().get("c1/eth0"), Some(&former));
    let pool = store.pool_mut(Family::V4).unwrap();
    assert_eq!(pool.lease_of("c1/eth0"), Some(ip));
    // Its times were those of the wall clock: the rest ends all the same, one cool-down from now.
    let taken = |pool: &mut Pool, address: &str, now| {
        pool.allocate_this("c2/eth0", address.parse().unwrap(), Duration::from_secs(now)).is_err()
    };
    assert!(taken(pool, "10.244.1.2", 100) && taken(pool, "10.244.1.3", 100));
    assert!(taken(pool, "10.244.1.2", 131) && !taken(pool, "10.244.1.3", 131));
    store.save().unwrap();
    let again = open(&dir.0, "b").unwrap();
    assert_eq!(again.pools(), store.pools());
}

#[test]
fn a_file_of_a_version_without_host_ports_and_wiring_is_read() {
    let mut record = serde_json::to_value(record("c1", [10, 244, 1, 4].into())).unwrap();
    record.as_object_mut().unwrap().remove("host_ports").unwrap();
    assert_eq!(record.as_object_mut().unwrap().remove("wiring"), Some("bridge".into()));
    let record = serde_json::from_value::<Record>(record).unwrap();
    assert_eq!((record.host_ports, record.wiring), (Vec::new(), Wiring::Bridge));
}

#[test]
fn a_reboot_frees_every_address() {
    let dir = Dir::new("reboot");
    open(&dir.0, "boot1").unwrap().save().unwrap();
    let again = open(&dir.0, "boot2").unwrap();
    assert!(again.all().is_empty());
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[test]
fn a_broken_file_is_named_and_never_taken_for_an_empty_one() {
    let dir = Dir::new("broken");
    fs::create_dir_all(&dir.0).unwrap();
    fs::write(dir.0.join("attachments-b.json"), "{").unwrap();
    let error = open(&dir.0, "b").unwrap_err().to_string();
    assert!(error.contains("attachments-b.json") && error.contains("Delete the pods"), "{error}");
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn lost(store: &Records) -> Vec<String> {
    store.lost().iter().map(ToString::to_string).collect()
}

#[test]
fn where_a_pod_could_send_from_outlives_its_record_until_the_kernel_has_forgotten() {
    let dir = Dir::new("lost");
    let mut store = open(&dir.0, "b").unwrap();
    for (container, further) in [("c1", &["198.51.100.0/28"][..]), ("c2", &[])] {
        let record = record(container, [10, 244, 1, 4].into());
        store.insert(Record { further: nets(further), ..record });
    }
    store.set_further("c2/eth0", nets(&["198.51.100.4/30", "2001:db8::7/128"]));
    store.save().unwrap();
    assert!(store.lost().is_empty());
    store.release("c1/eth0", Duration::ZERO);
    store.narrow("c2/eth0", nets(&["198.51.100.4/30"]));
    let expected = ["198.51.100.0/30", "198.51.100.8/29", "2001:db8::7/128"];
    assert_eq!(lost(&store), expected, "without what somebody has");
    store.save().unwrap();
    // An agent of before knows two words of the file with the attachments, and takes no third one.
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.0.join("attachments-b.json")).unwrap()).unwrap();
    assert_eq!(file.as_object().unwrap().keys().collect::<Vec<_>>(), ["pools", "records"]);
    let mut again = open(&dir.0, "b").unwrap();
    assert_eq!(lost(&again), expected);
    again.forgotten(&nets(&["198.51.100.0/30", "198.51.100.8/29"]));
    again.save().unwrap();
    let mut again = open(&dir.0, "b").unwrap();
    assert_eq!(lost(&again), ["2001:db8::7/128"]);
    again.forgotten(&nets(&["2001:db8::7/128"]));
    again.save().unwrap();
    assert!(!dir.0.join("sources-b.json").exists());
    assert_eq!(open(&dir.0, "b").unwrap().lost().len(), 0);
    again.release("c2/eth0", Duration::ZERO);
    again.save().unwrap();
    assert_eq!(lost(&open(&dir.0, "after-a-reboot").unwrap()), [""; 0]);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[test]
fn a_record_goes_only_when_what_it_leaves_is_written() {
    let dir = Dir::new("order");
    let mut store = open(&dir.0, "b").unwrap();
    let record = record("c1", [10, 244, 1, 4].into());
    store.insert(Record { further: nets(&["198.51.100.7/32"]), ..record });
    store.save().unwrap();
    fs::create_dir(dir.0.join("sources-b.new")).unwrap();
    store.release("c1/eth0", Duration::ZERO);
    let error = format!("{:#}", store.save().unwrap_err());
    assert!(error.contains("sources-b.new"), "{error}");
    assert_eq!(open(&dir.0, "b").unwrap().all().len(), 1);
}

/// It keeps no list of what is lost, and gives it to whoever asks.
#[test]
fn what_an_earlier_agent_gave_to_a_pod_is_lost_no_more() {
    let dir = Dir::new("between");
    let mut store = open(&dir.0, "b").unwrap();
    fs::write(dir.0.join("sources-b.json"), r#"{"lost":["198.51.100.6/31"],"later":1}"#).unwrap();
    let record = record("c1", [10, 244, 1, 4].into());
    store.insert(Record { further: nets(&["198.51.100.7/32"]), ..record });
    store.save().unwrap();
    assert_eq!(lost(&open(&dir.0, "b").unwrap()), ["198.51.100.6/32"]);
}

#[test]
fn interfaces_of_one_pod_share_its_further_sources() {
    let dir = Dir::new("shared");
    let mut store = open(&dir.0, "b").unwrap();
    let first = Record { further: nets(&["198.51.100.7/32"]), ..record("c1", [10, 244, 1, 4].into()) };
    let second = Record { ifname: IfName::new("net1").unwrap(), ips: Vec::new(), ..first.clone() };
    [first, second].into_iter().for_each(|record| store.insert(record));
    store.release("c1/eth0", Duration::ZERO);
    assert!(store.lost().is_empty());
    store.release("c1/net1", Duration::ZERO);
    assert_eq!(lost(&store), ["198.51.100.7/32"]);
}

#[test]
fn releasing_gives_the_address_back_once() {
    let dir = Dir::new("release");
    let mut store = open(&dir.0, "b").unwrap();
    let mut pool = Pool::new("10.244.1.0/24".parse().unwrap(), Duration::from_secs(30));
    let ip = pool.allocate("c1/eth0", Duration::ZERO).unwrap();
    store.pools_mut().push(pool);
    store.insert(record("c1", ip));
    assert!(store.release("c1/eth0", Duration::from_secs(1)).is_some());
    assert!(store.release("c1/eth0", Duration::from_secs(1)).is_none());
    assert_eq!(store.pool_mut(Family::V4).map(|pool| pool.leases().count()), Some(0));
}
