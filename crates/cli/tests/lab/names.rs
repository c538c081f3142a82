//! Names: looked up in guests, with the servers gone too.

use crate::bed::{Bed, path, signal, skip, until};
use crate::real::missing;

/// What a guest finds under a name; nothing if that is refused or denied.
fn looked_up(bed: &Bed, vm: &str, name: &str) -> Option<String> {
    let output = bed.run(&["exec", vm, "--", "nslookup", &format!("{name}.lightbyte.internal")]);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn guests_find_each_other_by_name_at_their_own_host() {
    let test = "guests_find_each_other_by_name_at_their_own_host";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("names", &["--vmm", "qemu", "--nodes", "2"]) else { return };
    bed.start();
    let file = bed.manifests(
        "{kind: scalegroup, name: web, spec: {replicas: 2, template: {image: demo}}}\n---\n\
         {kind: dnsrecord, name: www, spec: {type: CNAME, values: [web.group.lightbyte.internal]}}\n",
    );
    bed.ok(&["apply", "-f", path(&file)]);
    bed.ok(&["wait", "group/web"]);
    let addresses: Vec<String> = ["web-1", "web-2"]
        .iter()
        .map(|vm| {
            let address = bed.json(&["get", &format!("vm/{vm}")])["status"]["addresses"][0].clone();
            address.as_str().and_then(|address| address.split('/').next()).expect("an address").to_owned()
        })
        .collect();
    let host = bed.json(&["get", "vm/web-1"])["status"]["worker"].as_str().expect("a worker").to_owned();
    until("the group has both addresses", || {
        looked_up(&bed, "web-1", "web.group")
            .is_some_and(|text| addresses.iter().all(|one| text.contains(one)))
    });
    assert!(looked_up(&bed, "web-2", "www").is_some_and(|text| text.contains(&addresses[0])));
    assert_eq!(looked_up(&bed, "web-1", "nobody.vm"), None);
    let reverse = bed.ok(&["exec", "web-1", "--", "nslookup", &addresses[1]]);
    assert!(reverse.contains("web-2.vm.lightbyte.internal"), "{reverse}");

    // The other host's resolver has the same address, and is another one.
    let other = if host == "n1" { "n2" } else { "n1" };
    let resolver = bed.process(&format!("{other}-dns"));
    signal("STOP", resolver);
    assert!(looked_up(&bed, "web-1", "web-2.vm").is_some(), "its own host answers");
    signal("CONT", resolver);

    bed.ok(&["delete", "vm/web-2", "--yes"]);
    bed.ok(&["delete", "dnsrecord/www", "--yes"]);
    until("the record is gone", || looked_up(&bed, "web-1", "www").is_none());
    assert_eq!(bed.json(&["get", "network/default"])["spec"]["dns"].as_array().map(Vec::len), Some(1));
}
