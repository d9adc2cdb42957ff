//! A valid component that has none of the roles of a tenant's component.
#![allow(unsafe_code)] // Only what `export!` expands to.

wit_bindgen::generate!({
    inline: "
        package edge-relay-tests:roleless;

        world roleless {
            export greet: func() -> string;
        }
    ",
});

struct Roleless;
export!(Roleless);

impl Guest for Roleless {
    fn greet() -> String {
        "hello".to_owned()
    }
}
