//! Subkeys of tunnels, and how values stand in JSON.

use super::*;

fn tunnel(device: u8, published_at: u64) -> Result<Stamped<TunnelValue>> {
    Ok(Stamped {
        counter: 1,
        value: TunnelValue {
            route: vec![1, 2, 3],
            device: DeviceId([device; 16]),
            published_at,
            role: None,
        },
    })
}

#[test]
fn a_device_keeps_its_subkey() {
    let known = [
        (2, tunnel(1, 5)),
        (9, tunnel(2, 1)),
        (10, Err(Error::Damaged)),
    ];
    assert_eq!(pick_subkey(&known, DeviceId([2; 16])), 9);
}

#[test]
fn a_new_device_takes_a_free_subkey() {
    let device = DeviceId([3; 16]);
    let first = pick_subkey(&[], device);
    assert!(TUNNELS.contains(&first));
    let next = pick_subkey(&[(first, tunnel(1, 5))], device);
    assert!(TUNNELS.contains(&next) && next != first);
    let after_unreadable = pick_subkey(&[(first, Err(Error::WrongKey))], device);
    assert_eq!(after_unreadable, next);
}

#[test]
fn a_full_record_gives_up_the_unreadable_then_the_oldest() {
    let mut known: Vec<TunnelEntry> = TUNNELS
        .map(|subkey| (subkey, tunnel(subkey as u8, 100 + u64::from(subkey))))
        .collect();
    assert_eq!(known.len(), MAX_TUNNELS);
    known[12].1 = tunnel(200, 1);
    assert_eq!(pick_subkey(&known, DeviceId([77; 16])), known[12].0);
    known[20].1 = Err(Error::Damaged);
    assert_eq!(pick_subkey(&known, DeviceId([77; 16])), known[20].0);
}

#[test]
fn json_is_as_documented_and_ignores_what_it_does_not_know() {
    let root = RootValue {
        hash: [0xab; 32],
        bytes: 3,
        files: 1,
    };
    let text = serde_json::to_string(&root).unwrap();
    assert_eq!(
        text,
        format!(r#"{{"hash":"{}","bytes":3,"files":1}}"#, "ab".repeat(32))
    );
    let newer = text.replace(r#""files":1"#, r#""files":1,"else":[]"#);
    assert_eq!(serde_json::from_str::<RootValue>(&newer).unwrap(), root);
    let upper = text.replace("ab", "AB");
    assert!(serde_json::from_str::<RootValue>(&upper).is_err());

    let Ok(Stamped { value, .. }) = tunnel(0x0f, 7) else {
        unreachable!()
    };
    let text = serde_json::to_string(&value).unwrap();
    assert_eq!(
        text,
        format!(
            r#"{{"route":"AQID","device":"{}","published_at":7}}"#,
            "0f".repeat(16)
        )
    );
    assert_eq!(serde_json::from_str::<TunnelValue>(&text).unwrap(), value);
}

#[test]
fn the_largest_route_fits() {
    let largest = TunnelValue {
        route: vec![0xff; 12_000],
        device: DeviceId([0xff; 16]),
        published_at: u64::MAX,
        role: None,
    };
    assert!(serde_json::to_vec(&largest).unwrap().len() <= crate::value::MAX_PAYLOAD_32768);
}

#[test]
fn a_tunnel_prints_no_route() {
    let Ok(stamped) = tunnel(1, 7) else {
        unreachable!()
    };
    let text = format!("{:?}", stamped.value);
    assert!(
        text.contains("DeviceId(0101…)") && !text.contains("route"),
        "{text}"
    );
}
