//! What calls cost by role and language, and how soon the code is ready.

mod calls;
mod starts;

use super::{
    Outcome,
    languages::{Components, Language},
    place::Place,
};

pub struct Scenario {
    pub seconds: u32,
}

/// A language whose toolchain is installed.
struct Guest {
    language: Language,
    components: Components,
}

pub fn run(scenario: &Scenario, runs: usize, place: &Place) -> Outcome {
    let mut guests = Vec::new();
    let mut good = true;
    for language in Language::ALL {
        match language.components(place) {
            Ok(components) => guests.push(Guest { language, components }),
            Err(failure) => {
                eprintln!("left out: {}: {failure}", language.name());
                good &= language != Language::Rust;
            }
        }
    }
    let mut outcome = Outcome {
        text: "### Guests: the sample tenant's roles in each language\n\nThe relay has one core, feed and clients have \
               another. CPU is the relay's, user and system, with all that a call takes besides: sockets, HTTP, the state. × \
               is the ratio to Rust.\n\n"
            .to_owned(),
        good,
    };
    for part in [calls::run(scenario, &guests, runs, place), starts::run(&guests, runs, place)] {
        outcome.text += &part.text;
        outcome.good &= part.good;
    }
    outcome
}
