//! Components with something appended that no compiler would make: modules instantiated many times, handles without
//! end.
//!
//! Sections are put after those of a sound component byte by byte
//! (<https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md>), so that it keeps its role.

use crate::compile_bombs::{leb, section};

const CORE_MODULE: u8 = 1;
const CORE_INSTANCE: u8 = 2;
const COMPONENT: u8 = 4;
const INSTANCE: u8 = 5;

/// Bytes of a component's preamble.
const PREAMBLE: usize = 8;

/// The component with a core module after it, which is instantiated this many times.
pub fn with_module(component: &[u8], module: &str, instances: u32) -> Vec<u8> {
    let module = wat::parse_str(format!("(module {module})")).unwrap_or_else(|error| panic!("{error}"));
    let index = leb(count(component, CORE_MODULE));
    let instantiate = [&[0][..], &index, &[0]].concat();
    let instances = [leb(instances), instantiate.repeat(instances as usize)].concat();
    [component, &section(CORE_MODULE, &module), &section(CORE_INSTANCE, &instances)].concat()
}

/// The component with another one inside it, which is instantiated once.
pub fn with_component(component: &[u8], other: &str) -> Vec<u8> {
    let other = wat::parse_str(format!("(component {other})")).unwrap_or_else(|error| panic!("{error}"));
    let instance = [&[1, 0][..], &leb(count(component, COMPONENT)), &[0]].concat();
    [component, &section(COMPONENT, &other), &section(INSTANCE, &instance)].concat()
}

/// How many sections of a kind a component has.
fn count(component: &[u8], kind: u8) -> u32 {
    let (mut at, mut found) = (PREAMBLE, 0);
    while at < component.len() {
        found += u32::from(component[at] == kind);
        let mut length = 0;
        for shift in (0..).step_by(7) {
            at += 1;
            length |= usize::from(component[at] & 0x7F) << shift;
            if component[at] & 0x80 == 0 {
                break;
            }
        }
        at += 1 + length;
    }
    found
}
