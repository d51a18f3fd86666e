//! Every interleaving of a load with what happens meanwhile.

use super::*;

/// A value that was read before the invalidation, whichever comes first: landing or fence.
#[test]
fn no_interleaving_stores_what_was_read_before_an_invalidation() {
    loom::model(|| {
        let (flights, epoch) = (Arc::new(Flights::<u32>::new()), Epoch::default());
        let local = Arc::new(Mutex::new(Some(0)));
        let key = Key::public("key");
        let began = Began::now(Instant::default(), &epoch, std::iter::empty());
        let Boarding::Lead(lead) = flights.board(&key, &epoch, began, Duration::MAX, || None::<()>) else {
            unreachable!()
        };
        let loader = loom::thread::spawn({
            let local = Arc::clone(&local);
            move || lead.land(Ok(1), |_| *lock(&local) = Some(1))
        });
        flights.fence(&key, || *lock(&local) = None);
        // Whoever asks now leads a load of its own, and its value may be stored.
        let began = Began::now(Instant::default(), &epoch, std::iter::empty());
        let found = || lock(&local).map(|_| ());
        assert!(matches!(flights.board(&key, &epoch, began, Duration::MAX, found), Boarding::Lead(_)));
        loader.join().unwrap();
        assert_eq!(*lock(&local), None);
    });
}

/// A value that was written to its source while the key was removed, whichever comes first.
#[test]
fn no_interleaving_stores_what_was_written_over_a_removal_since() {
    loom::model(|| {
        let (flights, local) = (Arc::new(Flights::<u32>::new()), Arc::new(Mutex::new(Some(0))));
        let watch = flights.watch(&Key::public("key"));
        let writer = loom::thread::spawn({
            let local = Arc::clone(&local);
            move || watch.fence(|is_unchanged| *lock(&local) = is_unchanged.then_some(1))
        });
        flights.fence(&Key::public("key"), || *lock(&local) = None);
        writer.join().unwrap();
        assert_eq!(*lock(&local), None);
    });
}

/// What a flight was to see to for another, and is lost: whoever finds no flight any more finds that it is owed.
#[test]
fn no_interleaving_lets_who_finds_no_flight_read_what_nobody_owes_yet() {
    struct Noted(Arc<AtomicBool>);
    impl Duty for Noted {
        fn neglected(&mut self) {
            self.0.store(true, Ordering::Release);
        }

        fn done(self: Box<Self>) {}
    }
    loom::model(|| {
        let (flights, epoch) = (Arc::new(Flights::<u32>::new()), Epoch::default());
        let key = Key::public("key");
        let began = || Began::now(Instant::default(), &epoch, std::iter::empty());
        let (first, second) = (flights.force(&key, began()), flights.force(&key, began()));
        let is_owed = Arc::new(AtomicBool::new(false));
        let landed = first.land_over(Ok(1), &mut flights.watch(&key), |_, place| {
            let Place::LeftTo(second) = place else { unreachable!() };
            second.take_on(Box::new(Noted(Arc::clone(&is_owed))));
        });
        assert!(matches!(landed, Forced::Superseded));
        let runtime = loom::thread::spawn(move || drop(second));
        assert!(flights.glimpse(&key).is_none() || is_owed.load(Ordering::Acquire));
        runtime.join().unwrap();
        assert!(is_owed.load(Ordering::Acquire));
    });
}

/// The last caller goes, and another comes: either he is aboard a load that goes on, or he leads one of his own.
#[test]
fn no_interleaving_leaves_a_caller_aboard_a_load_that_was_dropped() {
    loom::model(|| {
        let (flights, epoch) = (Arc::new(Flights::<u32>::new()), Epoch::default());
        let board = {
            let (flights, epoch) = (Arc::clone(&flights), Arc::clone(&epoch));
            move || {
                let began = Began::now(Instant::default(), &epoch, std::iter::empty());
                flights.board(&Key::public("key"), &epoch, began, Duration::MAX, || None::<()>)
            }
        };
        let Boarding::Lead(lead) = board() else { unreachable!() };
        let first = lead.aboard();
        let second = loom::thread::spawn(move || match board() {
            Boarding::Join(aboard) => Some(aboard),
            Boarding::Found(()) | Boarding::Lead(_) => None,
        });
        let load = loom::thread::spawn(move || {
            let is_left =
                crate::model::poll_once(std::future::poll_fn(|context| match lead.is_left(context) {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }));
            (is_left.is_ready() && lead.abandon(), lead)
        });
        drop(first);
        let (aboard, (is_abandoned, lead)) = (second.join().unwrap(), load.join().unwrap());
        assert!(!(is_abandoned && aboard.is_some()));
        assert_eq!(lead.is_abandoned(), is_abandoned);
    });
}

/// The last caller goes while the load looks: it sees that, or is woken.
#[test]
fn no_interleaving_lets_a_load_sleep_when_all_have_gone() {
    loom::model(|| {
        let (flights, epoch) = (Arc::new(Flights::<u32>::new()), Epoch::default());
        let began = Began::now(Instant::default(), &epoch, std::iter::empty());
        let key = Key::public("key");
        let Boarding::Lead(lead) = flights.board(&key, &epoch, began, Duration::MAX, || None::<()>) else {
            unreachable!()
        };
        let caller = lead.aboard();
        let load = loom::thread::spawn(move || {
            crate::model::block_on(std::future::poll_fn(|context| match lead.is_left(context) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }));
            lead.abandon()
        });
        drop(caller);
        assert!(load.join().unwrap());
    });
}

/// Two who miss at once: one leads, the other joins or finds.
#[test]
fn no_interleaving_runs_two_loads_of_one_key() {
    loom::model(|| {
        let (flights, epoch) = (Arc::new(Flights::<u32>::new()), Epoch::default());
        let local = Arc::new(Mutex::new(None));
        let call = {
            let (flights, local, epoch) = (Arc::clone(&flights), Arc::clone(&local), Arc::clone(&epoch));
            move || {
                let began = Began::now(Instant::default(), &epoch, std::iter::empty());
                match flights.board(&Key::public("key"), &epoch, began, Duration::MAX, || *lock(&local)) {
                    Boarding::Lead(lead) => usize::from(lead.land(Ok(1), |_| *lock(&local) = Some(1))),
                    Boarding::Found(_) | Boarding::Join(_) => 0,
                }
            }
        };
        let other = loom::thread::spawn(call.clone());
        assert_eq!(call() + other.join().unwrap(), 1);
        assert_eq!((*lock(&local), flights.len()), (Some(1), 0));
    });
}
