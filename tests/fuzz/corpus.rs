//! Runs the corpus through every target on stable Rust, so that what fuzzing has found stays fixed.

use std::{fs, path::Path};

#[test]
fn every_file_of_the_corpus_is_taken() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in fuzz_targets::TARGETS {
        let mut files = 0;
        for file in fs::read_dir(corpus.join(name)).unwrap() {
            let file = file.unwrap().path();
            println!("{}", file.display());
            target(&fs::read(file).unwrap());
            files += 1;
        }
        assert!(files > 0, "{name} has no corpus");
    }
}

/// A target that is not in the list would not be replayed.
#[test]
fn every_target_is_listed() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut fuzzed: Vec<String> = fs::read_dir(here.join("libfuzzer/fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    fuzzed.sort();
    assert_eq!(fuzzed, fuzz_targets::TARGETS.map(|(name, _)| name));
}
