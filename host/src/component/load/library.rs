//! Compiled components in memory. Each content is made once, however many threads ask for it and however often.
//!
//! A thread waits while another one makes the content that it asks for. A content that was refused is refused again at
//! once, for a while. Otherwise a component that takes the whole time limit would take it again for each tenant that
//! has it.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    component::load::{compile::CompileError, engine::Hash},
    sync::Mutex,
};

/// How long a refusal holds. After that another try is worth it, for the host may have been busy.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// What was made or refused, by the hash of its content.
pub struct Library<T>(Mutex<HashMap<Hash, Arc<Mutex<Shelf<T>>>>>);

enum Shelf<T> {
    Empty,
    /// Somebody may still use it.
    Made(Weak<T>),
    Refused(Instant, CompileError),
}

impl<T> Shelf<T> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Made(made) => made.strong_count() == 0,
            Self::Refused(since, _) => since.elapsed() > REFUSED_FOR,
        }
    }
}

impl<T> Library<T> {
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    /// Returns what is there. If nothing is, calls `make` and returns both of its results; otherwise the second is
    /// `None`.
    pub fn get<M>(
        &self,
        hash: &Hash,
        make: impl FnOnce() -> Result<(T, M), CompileError>,
    ) -> Result<(Arc<T>, Option<M>), CompileError> {
        let shelf = self.shelf(hash);
        let mut shelf = shelf.lock();
        match &*shelf {
            Shelf::Made(made) => {
                if let Some(made) = made.upgrade() {
                    return Ok((made, None));
                }
            }
            Shelf::Refused(_, error) if !shelf.is_empty() => return Err(error.clone()),
            _ => {}
        }
        match make() {
            Ok((made, how)) => {
                let made = Arc::new(made);
                *shelf = Shelf::Made(Arc::downgrade(&made));
                Ok((made, Some(how)))
            }
            Err(error) => {
                *shelf = if error.is_lasting() { Shelf::Refused(Instant::now(), error.clone()) } else { Shelf::Empty };
                Err(error)
            }
        }
    }

    fn shelf(&self, hash: &Hash) -> Arc<Mutex<Shelf<T>>> {
        let mut shelves = self.0.lock();
        if let Some(shelf) = shelves.get(hash) {
            return Arc::clone(shelf);
        }
        // A shelf that another thread has taken is not looked into: locking it could mean waiting for a compilation.
        shelves.retain(|_, shelf| Arc::strong_count(shelf) > 1 || !shelf.lock().is_empty());
        Arc::clone(shelves.entry(*hash).or_insert_with(|| Arc::new(Mutex::new(Shelf::Empty))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    const A: Hash = [1; 32];
    const B: Hash = [2; 32];

    #[test]
    fn what_somebody_uses_is_not_made_again() {
        let library = Library::new();
        let (first, made) = library.get(&A, || Ok(("first", ()))).unwrap();
        assert!(made.is_some());
        let (again, made) = library.get::<()>(&A, || panic!("it is there")).unwrap();
        assert!(made.is_none() && Arc::ptr_eq(&first, &again));
        drop((first, again));
        let (second, _) = library.get(&A, || Ok(("second", ()))).unwrap();
        assert_eq!(*second, "second");
    }

    #[test]
    fn a_second_request_waits_for_the_first() {
        let library = Library::new();
        let (begun, begins) = std::sync::mpsc::channel();
        let (go, goes) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let make = move || {
                begun.send(()).unwrap();
                goes.recv().unwrap();
                Ok((1, ()))
            };
            let first = scope.spawn(|| library.get(&A, make).unwrap().0);
            begins.recv().unwrap();
            let second = scope.spawn(|| library.get::<()>(&A, || panic!("it is being made")));
            // Another content does not wait.
            assert_eq!(*library.get(&B, || Ok((2, ()))).unwrap().0, 2);
            go.send(()).unwrap();
            let (second, made) = second.join().unwrap().unwrap();
            assert!(made.is_none() && Arc::ptr_eq(&first.join().unwrap(), &second));
        });
    }

    #[test]
    fn a_lasting_refusal_holds_and_a_passing_one_does_not() {
        let library = Library::<()>::new();
        let refuse = |error: CompileError| library.get::<()>(&A, || Err(error)).unwrap_err().reason();
        assert_eq!(refuse(CompileError::Run("no memory".into())), "host");
        assert_eq!(refuse(CompileError::Size), "size");
        assert_eq!(refuse(CompileError::Run("not asked".into())), "size");
    }

    #[test]
    fn what_nobody_uses_takes_no_room() {
        let library = Library::new();
        for nth in 0..100 {
            drop(library.get(&[nth; 32], || Ok(((), ()))).unwrap());
        }
        assert!(library.0.lock().len() <= 2);
    }
}
