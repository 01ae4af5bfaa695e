//! How the daemon is linked: relative relocations packed (DT_RELR, which glibc knows since 2.36), half a megabyte less;
//! functions of the same instructions once, so that a profile may name one of them for another.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs,--icf=all");
}
