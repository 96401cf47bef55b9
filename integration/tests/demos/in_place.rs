//! `in_place`: every way of it moves all bytes.

use crate::demo::Device;

#[test]
fn every_way_is_measured() {
    let (success, said) = Device::new().run("in_place", &["--rounds", "1", "--mib", "8"]);
    assert!(success && said.starts_with("medians of 1, in turns"), "{said}");
    assert_eq!(said.lines().count(), 1 + 6, "{said}");
    for way in ["write_all", "write_shared", "codec, every", "in place, every", "codec, one", "in place, one"]
    {
        assert!(said.contains(way), "{way}: {said}");
    }
}
