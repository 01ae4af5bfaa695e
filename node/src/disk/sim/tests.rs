use super::*;

const DIRECTORY: &str = "/d";

fn disk_with(seed: u64, name: &str) -> (SimDisk, PathBuf, Box<dyn File>) {
    let disk = SimDisk::new(seed);
    disk.create_directory(Path::new(DIRECTORY)).unwrap();
    let path = Path::new(DIRECTORY).join(name);
    let file = disk.open(&path, true).unwrap();
    (disk, path, file)
}

#[test]
fn synced_survives_and_unsynced_is_lost_or_kept_by_sector() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let (disk, path, file) = disk_with(seed, "f");
        file.write_at(&[1; 2048], 0).unwrap();
        file.sync().unwrap();
        disk.sync_directory(Path::new(DIRECTORY)).unwrap();
        file.write_at(&[2; 1024], 256).unwrap();
        disk.crash();
        let bytes = disk.contents(&path).expect("the name was synced");
        assert_eq!(bytes.len(), 2048, "seed {seed}");
        assert!(bytes[..256].iter().chain(&bytes[1280..]).all(|b| *b == 1), "seed {seed}: synced bytes changed");
        for sector in [256..512, 512..1024, 1024..1280] {
            let first = bytes[sector.start];
            assert!(bytes[sector].iter().all(|b| *b == first), "seed {seed}: a sector was torn");
        }
        outcomes.insert((bytes[256], bytes[512], bytes[1024]));
    }
    assert_eq!(outcomes.len(), 8, "every combination of kept and lost sectors should occur");
}

#[test]
fn unsynced_names_are_kept_or_undone() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let (disk, path, _file) = disk_with(seed, "old");
        disk.sync_directory(Path::new(DIRECTORY)).unwrap();
        disk.open(&Path::new(DIRECTORY).join("new"), true).unwrap();
        disk.remove(&path).unwrap();
        disk.crash();
        outcomes.insert(disk.list(Path::new(DIRECTORY)).unwrap());
    }
    assert_eq!(outcomes.len(), 4, "create and remove should each be kept and undone: {outcomes:?}");
}

#[test]
fn a_crash_point_stops_everything_before_or_after_its_operation() {
    for (point, expected) in [(CrashPoint::Before, 0), (CrashPoint::After, 9)] {
        let (disk, path, file) = disk_with(1, "f");
        file.allocate(1).unwrap();
        file.sync().unwrap();
        disk.sync_directory(Path::new(DIRECTORY)).unwrap();
        disk.crash_at(3, point);
        file.write_at(&[9], 0).unwrap();
        file.sync().expect_err("the third durable operation is the crash point");
        assert!(disk.is_dead());
        file.read_at(&mut [0], 0).expect_err("a dead machine does not read");
        disk.open(&path, false).err().expect("a dead machine does not open");
        disk.crash();
        let byte = disk.contents(&path).expect("the name was synced")[0];
        if point == CrashPoint::After {
            assert_eq!(byte, expected, "the operation took effect");
        }
        file.length().expect_err("a handle of before the crash is dead");
        assert_eq!(disk.durable_operations(), 3);
    }
}

#[test]
fn a_full_disk_refuses_growth_only() {
    let (disk, _, file) = disk_with(1, "f");
    disk.set_capacity(1000);
    file.allocate(1000).unwrap();
    let error = file.write_at(&[1], 1000).expect_err("one byte too many");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    file.write_at(&[1; 1000], 0).expect("within the length there is room");
    assert_eq!(disk.free_bytes(Path::new(DIRECTORY)).unwrap(), 0);
}

#[test]
fn a_failed_sync_loses_what_it_was_to_write() {
    let (disk, path, file) = disk_with(1, "f");
    file.allocate(4).unwrap();
    file.sync().unwrap();
    disk.sync_directory(Path::new(DIRECTORY)).unwrap();
    file.write_at(&[7; 4], 0).unwrap();
    disk.fail_next_sync();
    file.sync().expect_err("told to fail");
    file.sync().expect("the pages count as clean");
    assert_eq!(disk.contents(&path).unwrap(), [7; 4], "still in the page cache");
    disk.crash();
    assert_eq!(disk.contents(&path).unwrap(), [0; 4], "never on the disk");
}

#[test]
fn damage_is_durable() {
    let (disk, path, file) = disk_with(1, "f");
    file.write_at(&[0xff; PAGE_BYTES * 2], 0).unwrap();
    file.sync().unwrap();
    disk.sync_directory(Path::new(DIRECTORY)).unwrap();
    assert!(disk.flip_bit(&path, 9) && disk.zero_page(&path, 1));
    assert!(!disk.zero_page(&path, 2), "there is no third page");
    disk.crash();
    let bytes = disk.contents(&path).unwrap();
    assert_eq!((bytes[1], bytes[PAGE_BYTES - 1], bytes[PAGE_BYTES]), (0xfd, 0xff, 0));
    assert!(disk.cut(&path, 10) && disk.contents(&path).unwrap().len() == 10);
}
