//! Edge: what the controller says of a store that it cannot have, and of flags that it cannot take.

use std::fs::{self, OpenOptions};
use std::process::Command;

use redb::{Database, TableDefinition};

use crate::process::{Controller, command, place, refused, run};

#[test]
fn two_controllers_cannot_have_one_store() {
    let (_dir, store) = place();
    let first = Controller::start(&store);
    assert!(refused(&store).contains("is in use by another process"));
    assert!(first.stop().success());
}

#[test]
fn a_truncated_store_is_refused_and_left_as_it_is() {
    let (_dir, store) = place();
    assert!(Controller::start(&store).stop().success());
    let whole = fs::metadata(&store).unwrap().len();
    for keep in [whole - 1, whole / 2, 4096, 100, 5] {
        let file = OpenOptions::new().write(true).open(&store).unwrap();
        file.set_len(keep).unwrap();
        drop(file);
        assert!(refused(&store).contains("damaged or cut short"));
        assert_eq!(fs::metadata(&store).unwrap().len(), keep);
    }
    fs::write(&store, b"").unwrap();
    assert!(refused(&store).contains("is empty (0 bytes)"));
    assert_eq!(fs::metadata(&store).unwrap().len(), 0);
}

#[test]
fn a_store_cut_after_a_kill_is_refused() {
    let (_dir, store) = place();
    Controller::start(&store).kill();
    let whole = fs::metadata(&store).unwrap().len();
    let file = OpenOptions::new().write(true).open(&store).unwrap();
    file.set_len(whole / 2 + 1).unwrap();
    drop(file);
    assert!(refused(&store).contains("damaged or cut short"));
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let (_dir, store) = place();
    assert!(Controller::start(&store).stop().success());
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("limpet-meta");
    let database = Database::open(&store).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(meta).unwrap().insert("format", 9).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(refused(&store).contains("has format 9, and this program knows formats up to 2"));
}

#[test]
fn a_missing_directory_is_refused_and_not_made() {
    let (dir, _) = place();
    let store = dir.path().join("absent/store.redb");
    let (status, said) = run(&["--plain-http", "--store", store.to_str().unwrap()]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("does not exist: create it, or correct --store"), "{said}");
    assert!(!dir.path().join("absent").exists());
}

#[test]
fn another_kind_of_file_is_refused() {
    let (_dir, store) = place();
    fs::write(&store, "to be, or not to be").unwrap();
    assert!(refused(&store).contains("is not a limpet store"));
    assert_eq!(fs::read(&store).unwrap(), b"to be, or not to be");
}

#[test]
fn a_pipe_or_a_device_is_refused_and_not_waited_for() {
    let (_dir, store) = place();
    assert!(Command::new("mkfifo").arg(&store).status().unwrap().success());
    assert!(refused(&store).contains("is not a limpet store: it is not a regular file"));
    assert!(refused("/dev/null".as_ref()).contains("it is not a regular file"));
}

#[test]
fn a_record_that_is_damaged_is_told_with_what_to_do() {
    let (_dir, store) = place();
    assert!(Controller::start(&store).stop().success());
    let keys: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("limpet-keys");
    let database = Database::open(&store).unwrap();
    let transaction = database.begin_write().unwrap();
    let value: &[u8] = b"\x01\0\0\0\0\0\0\0{";
    transaction.open_table(keys).unwrap().insert("pools/p", value).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let said = refused(&store);
    assert!(said.contains("a record under pools/p"), "{said}");
    assert!(said.contains("restore the store from a backup"), "{said}");
}

#[test]
fn a_port_in_use_is_told() {
    let (_dir, store) = place();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["--plain-http", "--store", store.to_str().unwrap(), "--listen", &address];
    let (status, said) = run(&flags);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&format!("listening on {address}")), "{said}");
}

#[test]
fn without_plain_http_it_refuses_and_says_why() {
    let (_dir, store) = place();
    let (status, said) = run(&["--store", store.to_str().unwrap()]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("give --plain-http"), "{said}");
    assert!(!store.exists(), "nothing was done");
}

#[test]
fn a_switch_in_the_environment_is_on_or_off_in_any_usual_words() {
    let (_dir, store) = place();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = |value: &str| {
        let flags = ["--store", store.to_str().unwrap(), "--listen", &address];
        let output = command(&flags).env("LIMPET_PLAIN_HTTP", value).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for on in ["1", "true", "yes", "on"] {
        assert!(said(on).contains("listening on"), "{on}");
    }
    for off in ["0", "false", "no", "off"] {
        assert!(said(off).contains("give --plain-http"), "{off}");
    }
    assert!(said("perhaps").contains("perhaps"));
}

#[test]
fn flags_that_make_no_sense_are_misuse() {
    for flags in [
        ["--listen", "nowhere"],
        ["--log-revisions", "0"],
        ["--cache-mib", "0"],
        ["--no-such", "flag"],
    ] {
        let (status, said) = run(&flags);
        assert_eq!(status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(flags[0]), "{said}");
    }
}
