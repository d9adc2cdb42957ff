//! Small components that take enormous time or memory to compile.
//!
//! Each is a core module with one function, wrapped as a component and put together byte by byte
//! (<https://webassembly.github.io/spec/core/binary/>).

/// About 20 kB that take many minutes: many nested loops, with many locals that live through all of them.
pub fn of_time() -> Vec<u8> {
    const LOOPS: usize = 3000;
    const LOCALS: u32 = 100;
    let mut code = [0x03, 0x40].repeat(LOOPS); // loop
    for local in 0..LOCALS {
        // local.get, i32.const 1, i32.add, local.set
        code.extend([&[0x20], &leb(local)[..], &[0x41, 1, 0x6A, 0x21], &leb(local)].concat());
    }
    code.extend([0x41, 1, 0x0D, 0, 0x0B].repeat(LOOPS)); // i32.const 1, br_if 0, end
    component(LOCALS, &code)
}

/// About 300 kB that take gigabytes at once: many branches, with thousands of locals that live behind each of them.
pub fn of_memory() -> Vec<u8> {
    const BRANCHES: u32 = 30_000;
    const LOCALS: u32 = 5_000;
    let mut code = Vec::new();
    for branch in 0..BRANCHES {
        // local.get 0, if, i32.const 1, local.set, end
        code.extend([&[0x20, 0, 0x04, 0x40, 0x41, 1, 0x21], &leb(branch % LOCALS)[..], &[0x0B]].concat());
    }
    for local in 0..LOCALS {
        code.extend([&[0x20], &leb(local)[..], &[0x1A]].concat()); // local.get, drop
    }
    component(LOCALS, &code)
}

/// Makes a component that is nothing but a core module with this function.
fn component(locals: u32, code: &[u8]) -> Vec<u8> {
    let body = [&leb(1)[..], &leb(locals), &[0x7F], code, &[0x0B]].concat();
    let types = section(1, &[1, 0x60, 0, 0]);
    let functions = section(3, &[1, 0]);
    let bodies = section(10, &[&leb(1)[..], &leb(length(&body)), &body].concat());
    let module = [b"\0asm\x01\0\0\0", &types[..], &functions, &bodies].concat();
    [b"\0asm\x0D\0\x01\0", &section(1, &module)[..]].concat()
}

pub(crate) fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], &leb(length(content))[..], content].concat()
}

fn length(bytes: &[u8]) -> u32 {
    bytes.len().try_into().unwrap()
}

pub(crate) fn leb(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
