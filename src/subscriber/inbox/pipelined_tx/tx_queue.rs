//! Queue of the transactions that wait to begin.
//!
//! A transaction needs a permit and a connection. There is one permit for each connection that the
//! pool can have. If no permit is free, the transaction waits in two lines at once: for a permit,
//! and for the commit of another transaction, whose message can also begin this one
//! ([`TxQueue::join_commit`]). With a permit, it takes an idle connection or waits for the first
//! one that is released or opened ([`TxQueue::acquire`]).
//!
//! The queue performs no I/O. It decides which waiting task is served next; its owner opens
//! connections, sends messages, and returns the connections that the queue does not keep.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

/// Queue for connections `C`. A transaction that was begun by the commit of another one is a `B`.
#[derive(Debug)]
pub(super) struct TxQueue<C, B, E> {
    permits: Arc<Semaphore>,
    state: Mutex<State<C, B, E>>,
}

#[derive(Debug)]
struct State<C, B, E> {
    /// Idle connections and the time of their release. The one that was used last is used next.
    idle: Vec<(C, Instant)>,
    /// True while the owner returns unused connections at an interval.
    is_swept: bool,
    /// Transactions that will begin in the message of the next commits.
    requests: VecDeque<Request<B, E>>,
    /// Number of the last request.
    requested: u64,
    /// Tasks that wait for a connection.
    waiting: VecDeque<oneshot::Sender<Result<C, E>>>,
    /// Number of connections that the owner is opening. It is at least the number of waiting tasks.
    opening: usize,
}

/// A transaction that waits for the commit of another one.
#[derive(Debug)]
pub(super) struct Request<B, E> {
    number: u64,
    /// The message that begins it.
    pub(super) message: String,
    answer: oneshot::Sender<Result<B, E>>,
}

impl<B, E> Request<B, E> {
    /// Passes on the outcome of the message. If the task does not wait any more, the outcome is
    /// dropped.
    pub(super) fn answer(self, begun: Result<B, E>) {
        let _ = self.answer.send(begun);
    }
}

/// Outcome of a request to begin in the message of another transaction's commit.
#[derive(Debug)]
pub(super) enum Joined<B, E> {
    Answered(Result<B, E>),
    /// A permit is free, so the transaction can begin alone.
    Free(OwnedSemaphorePermit),
    /// The commit failed, so the message was not processed.
    Nothing,
}

/// A connection for a transaction that has a permit.
#[derive(Debug)]
pub(super) enum Acquired<C, E> {
    Idle(C),
    /// The task waits for this answer. If `open` is true, the owner must open one more connection.
    Waits {
        connection: oneshot::Receiver<Result<C, E>>,
        open: bool,
    },
}

/// Destination of a released connection.
#[derive(Debug)]
pub(super) enum Released<C> {
    /// A waiting task has it.
    Passed,
    /// It is idle. If `sweep` is true, the owner must start to call
    /// [`take_unused`](TxQueue::take_unused) at an interval.
    Kept { sweep: bool },
    /// The tasks for which it was requested do not wait any more, so it returns to the pool.
    Surplus(C),
}

/// The unused connections, and whether others remain.
#[derive(Debug)]
pub(super) struct Unused<C> {
    pub(super) connections: Vec<C>,
    /// False if no idle connection is left. The sweep ends then.
    pub(super) sweeps_again: bool,
}

impl<C, B, E> TxQueue<C, B, E> {
    /// Creates a queue for this many connections.
    pub(super) fn new(connections: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(connections)),
            state: Mutex::new(State {
                idle: Vec::new(),
                is_swept: false,
                requests: VecDeque::new(),
                requested: 0,
                waiting: VecDeque::new(),
                opening: 0,
            }),
        }
    }

    /// Returns a permit if one is free.
    pub(super) fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Waits for a permit.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits
            .clone()
            .acquire_owned()
            .await
            .expect("never closed")
    }

    /// Waits until this message was sent with the commit of another transaction, or until a permit
    /// is free.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the request is withdrawn. If a commit has already taken it, the
    /// answer is dropped.
    pub(super) async fn join_commit(&self, message: String) -> Joined<B, E> {
        let (answer, mut begun) = oneshot::channel();
        let number = {
            let mut state = self.state();
            state.requested += 1;
            let number = state.requested;
            state.requests.push_back(Request {
                number,
                message,
                answer,
            });
            number
        };
        let _withdrawn = Withdrawn {
            queue: self,
            number,
        };
        let answer = tokio::select! {
            begun = &mut begun => begun,
            permit = self.permit() => match self.withdraw(number) {
                Some(_) => return Joined::Free(permit),
                None => {
                    drop(permit);
                    begun.await
                }
            }
        };
        answer.map_or(Joined::Nothing, Joined::Answered)
    }

    /// Returns the transaction that begins in the message of the next commit. If the request is
    /// dropped without an answer, [`join_commit`](Self::join_commit) returns [`Joined::Nothing`].
    pub(super) fn take_request(&self) -> Option<Request<B, E>> {
        self.state().requests.pop_front()
    }

    /// Removes a request that has not been taken yet.
    fn withdraw(&self, number: u64) -> Option<Request<B, E>> {
        let mut state = self.state();
        let at = state
            .requests
            .iter()
            .position(|request| request.number == number)?;
        state.requests.remove(at)
    }

    /// Returns an idle connection, or joins the tasks that wait for one.
    pub(super) fn acquire(&self) -> Acquired<C, E> {
        let mut state = self.state();
        if let Some((connection, _)) = state.idle.pop() {
            return Acquired::Idle(connection);
        }
        let (waiting, connection) = oneshot::channel();
        state.waiting.push_back(waiting);
        let open = state.opening < state.waiting.len();
        state.opening += usize::from(open);
        Acquired::Waits { connection, open }
    }

    /// Returns the guard of a connection that the owner opens. If the guard is dropped, one waiting
    /// task gets the error.
    pub(super) fn opening(&self, if_dropped: E) -> Opening<'_, C, B, E> {
        Opening {
            queue: self,
            failed: Some(if_dropped),
        }
    }

    /// Passes on a connection without an open transaction, or keeps it.
    pub(super) fn release(&self, mut connection: C, now: Instant) -> Released<C> {
        let mut state = self.state();
        let mut was_requested = false;
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.send(Ok(connection)) {
                Err(Ok(back)) => connection = back,
                _ => return Released::Passed,
            }
            was_requested = true;
        }
        if was_requested {
            return Released::Surplus(connection);
        }
        state.idle.push((connection, now));
        Released::Kept {
            sweep: !std::mem::replace(&mut state.is_swept, true),
        }
    }

    /// Removes the connections that have been idle for at least this time.
    pub(super) fn take_unused(&self, now: Instant, time: Duration) -> Unused<C> {
        let mut state = self.state();
        // Connections that were used last are at the end.
        let unused = state
            .idle
            .partition_point(|(_, since)| now.duration_since(*since) >= time);
        let connections = state.idle.drain(..unused).map(|(connection, _)| connection);
        let connections = connections.collect();
        state.is_swept = !state.idle.is_empty();
        Unused {
            connections,
            sweeps_again: state.is_swept,
        }
    }

    /// Removes all idle connections.
    pub(super) fn take_idle(&self) -> impl Iterator<Item = C> + use<C, B, E> {
        let idle = std::mem::take(&mut self.state().idle);
        idle.into_iter().map(|(connection, _)| connection)
    }

    fn state(&self) -> MutexGuard<'_, State<C, B, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Withdraws a request when its future is dropped.
struct Withdrawn<'q, C, B, E> {
    queue: &'q TxQueue<C, B, E>,
    number: u64,
}

impl<C, B, E> Drop for Withdrawn<'_, C, B, E> {
    fn drop(&mut self) {
        let _ = self.queue.withdraw(self.number);
    }
}

/// A connection that is being opened. If that fails, one waiting task gets the error.
#[derive(Debug)]
pub(super) struct Opening<'q, C, B, E> {
    queue: &'q TxQueue<C, B, E>,
    failed: Option<E>,
}

impl<C, B, E> Opening<'_, C, B, E> {
    /// The connection is open. The owner releases it next.
    pub(super) fn succeeded(mut self) {
        self.failed = None;
    }

    pub(super) fn failed(mut self, error: E) {
        self.failed = Some(error);
    }
}

impl<C, B, E> Drop for Opening<'_, C, B, E> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.opening -= 1;
        let Some(mut error) = self.failed.take() else {
            return;
        };
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.send(Err(error)) {
                Err(Err(back)) => error = back,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        cell::{Cell, RefCell},
        future::Future,
        pin::Pin,
        rc::Rc,
        sync::atomic::{AtomicBool, Ordering},
        task::{Context, Poll, Wake, Waker},
    };

    const CONNECTIONS: usize = 2;
    const IDLE: Duration = Duration::from_secs(3);

    struct Tx {
        connection: u32,
        _permit: OwnedSemaphorePermit,
    }

    /// The owner of the queue, without I/O.
    struct Owner {
        queue: TxQueue<u32, Tx, &'static str>,
        /// Connections to open.
        to_open: Cell<usize>,
        opened: Cell<u32>,
        /// Requests and acquisitions so far.
        joined: Cell<u64>,
        acquired: Cell<u64>,
        /// Acquisitions that were served after waiting.
        served: RefCell<Vec<u64>>,
        /// Requests that commits have taken.
        taken: RefCell<Vec<u64>>,
        /// Number of connections that were returned to the pool.
        returned: Cell<usize>,
    }

    impl Owner {
        async fn begin(self: Rc<Self>) -> Result<Tx, &'static str> {
            loop {
                let permit = match self.queue.try_permit() {
                    Some(permit) => permit,
                    None => {
                        self.joined.set(self.joined.get() + 1);
                        let number = self.joined.get();
                        match self.queue.join_commit(number.to_string()).await {
                            Joined::Answered(begun) => return begun,
                            Joined::Free(permit) => {
                                assert!(!self.taken.borrow().contains(&number), "served twice");
                                permit
                            }
                            Joined::Nothing => continue,
                        }
                    }
                };
                let connection = match self.queue.acquire() {
                    Acquired::Idle(connection) => connection,
                    Acquired::Waits { connection, open } => {
                        self.to_open.set(self.to_open.get() + usize::from(open));
                        let number = self.acquired.replace(self.acquired.get() + 1);
                        let connection = connection.await.expect("every waiting task is served");
                        self.served.borrow_mut().push(number);
                        connection?
                    }
                };
                return Ok(Tx {
                    connection,
                    _permit: permit,
                });
            }
        }

        fn open(&self, works: bool, now: Instant) {
            if self.to_open.get() == 0 {
                return;
            }
            self.to_open.set(self.to_open.get() - 1);
            let opening = self.queue.opening("dropped");
            if works {
                self.opened.set(self.opened.get() + 1);
                opening.succeeded();
                self.release(self.opened.get(), now);
            } else {
                opening.failed("failed");
            }
        }

        fn release(&self, connection: u32, now: Instant) {
            if let Released::Surplus(_) = self.queue.release(connection, now) {
                self.returned.set(self.returned.get() + 1);
            }
        }
    }

    /// A task that is polled only after it was woken.
    struct Task {
        future: Pin<Box<dyn Future<Output = Result<Tx, &'static str>>>>,
        woken: Arc<Woken>,
    }

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A transaction whose commit is in flight, with the request that it has taken.
    type Committing = (Tx, Option<Request<Tx, &'static str>>, End);

    struct Model {
        owner: Rc<Owner>,
        tasks: Vec<Task>,
        running: Vec<Tx>,
        committing: Vec<Committing>,
        now: Instant,
        started: usize,
        ended: usize,
    }

    impl Model {
        fn new() -> Self {
            Self {
                owner: Rc::new(Owner {
                    queue: TxQueue::new(CONNECTIONS),
                    to_open: Cell::new(0),
                    opened: Cell::new(0),
                    joined: Cell::new(0),
                    acquired: Cell::new(0),
                    served: RefCell::default(),
                    taken: RefCell::default(),
                    returned: Cell::new(0),
                }),
                tasks: Vec::new(),
                running: Vec::new(),
                committing: Vec::new(),
                now: Instant::now(),
                started: 0,
                ended: 0,
            }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Begin => {
                    self.started += 1;
                    self.tasks.push(Task {
                        future: Box::pin(self.owner.clone().begin()),
                        woken: Arc::new(Woken(true.into())),
                    });
                }
                Step::Cancel(at) if !self.tasks.is_empty() => {
                    self.ended += 1;
                    self.tasks.remove(at % self.tasks.len());
                }
                Step::Open(works) => self.owner.open(works, self.now),
                Step::Commit(at, end) if !self.running.is_empty() => {
                    let tx = self.running.swap_remove(at % self.running.len());
                    let request = match end {
                        End::Leaves => None,
                        End::Passes | End::Rejected => self.owner.queue.take_request(),
                    };
                    if let Some(request) = &request {
                        let number = request.message.parse().expect("a number");
                        self.owner.taken.borrow_mut().push(number);
                    }
                    self.committing.push((tx, request, end));
                }
                Step::Answer(at) if !self.committing.is_empty() => {
                    let at = at % self.committing.len();
                    let (tx, request, end) = self.committing.swap_remove(at);
                    self.answer(tx, request, end);
                }
                Step::Sweep(seconds) => {
                    self.now += Duration::from_secs(seconds);
                    let unused = self.owner.queue.take_unused(self.now, IDLE).connections;
                    let returned = &self.owner.returned;
                    returned.set(returned.get() + unused.len());
                }
                Step::Cancel(_) | Step::Commit(..) | Step::Answer(_) => {}
            }
            self.poll_woken();
            self.check();
        }

        fn answer(&mut self, tx: Tx, request: Option<Request<Tx, &'static str>>, end: End) {
            self.ended += 1;
            match (request, end) {
                (Some(request), End::Passes) => {
                    if request.answer.is_closed() {
                        let returned = &self.owner.returned;
                        returned.set(returned.get() + 1);
                    }
                    request.answer(Ok(tx));
                }
                _ => self.owner.release(tx.connection, self.now),
            }
        }

        fn poll_woken(&mut self) {
            let mut at = 0;
            while at < self.tasks.len() {
                let task = &mut self.tasks[at];
                if !task.woken.0.swap(false, Ordering::Relaxed) {
                    at += 1;
                    continue;
                }
                let waker = Waker::from(task.woken.clone());
                if let Poll::Ready(begun) =
                    task.future.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    drop(self.tasks.remove(at));
                    match begun {
                        Ok(tx) => self.running.push(tx),
                        Err(_) => self.ended += 1,
                    }
                }
                // A task that ends may wake an earlier one.
                at = 0;
            }
        }

        fn check(&self) {
            let increases = |numbers: &[u64]| numbers.windows(2).all(|pair| pair[0] < pair[1]);
            let taken = self.owner.taken.borrow();
            assert!(increases(&taken), "requests: {taken:?}");
            let served = self.owner.served.borrow();
            assert!(increases(&served), "connections: {served:?}");
            let begun = self.running.len() + self.committing.len();
            assert_eq!(self.tasks.len() + begun + self.ended, self.started);
            let free = self.owner.queue.permits.available_permits();
            assert!(free + begun <= CONNECTIONS);
            let state = self.owner.queue.state();
            let connections = state.idle.len() + begun + self.owner.returned.get();
            assert_eq!(connections, self.owner.opened.get() as usize, "connections");
            assert!(free == 0 || state.requests.is_empty(), "a permit is free");
            assert!(state.waiting.len() <= state.opening, "a task is forgotten");
            assert_eq!(state.opening, self.owner.to_open.get());
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        Cancel(usize),
        /// Ends the opening of a connection, with or without success.
        Open(bool),
        /// Sends the commit of a transaction.
        Commit(usize, End),
        /// Processes the answer to a commit.
        Answer(usize),
        /// Seconds pass, and unused connections are removed.
        Sweep(u64),
    }

    #[derive(Clone, Copy, Debug)]
    enum End {
        /// The commit begins the next transaction.
        Passes,
        /// The commit fails, so its message begins nothing.
        Rejected,
        /// The commit leaves the requests to others, because the lease of its connection is over.
        Leaves,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let end = prop_oneof![
            3 => Just(End::Passes),
            1 => Just(End::Rejected),
            1 => Just(End::Leaves),
        ];
        let step = prop_oneof![
            4 => Just(Step::Begin),
            1 => (0..9_usize).prop_map(Step::Cancel),
            3 => prop::bool::weighted(0.8).prop_map(Step::Open),
            3 => (0..9_usize, end).prop_map(|(at, end)| Step::Commit(at, end)),
            3 => (0..9_usize).prop_map(Step::Answer),
            1 => (0..5_u64).prop_map(Step::Sweep),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn each_waiting_transaction_begins_once_in_order_and_returns_its_permit(steps in steps()) {
            let mut model = Model::new();
            for step in &steps {
                model.step(step);
            }
            for _ in 0..3 * steps.len() {
                model.step(&Step::Open(true));
                model.step(&Step::Commit(0, End::Passes));
                model.step(&Step::Answer(0));
            }
            prop_assert!(model.tasks.is_empty(), "tasks wait forever");
            prop_assert_eq!(model.ended, model.started);
            prop_assert_eq!(model.owner.queue.permits.available_permits(), CONNECTIONS);
        }
    }

    #[test]
    fn a_sweep_takes_the_connections_that_were_not_used() {
        let queue = TxQueue::<_, (), ()>::new(2);
        let start = Instant::now();
        assert!(matches!(
            queue.release(1, start),
            Released::Kept { sweep: true }
        ));
        let later = start + IDLE / 2;
        assert!(matches!(
            queue.release(2, later),
            Released::Kept { sweep: false }
        ));
        let unused = queue.take_unused(start + IDLE, IDLE);
        assert_eq!((unused.connections, unused.sweeps_again), (vec![1], true));
        let unused = queue.take_unused(later + IDLE, IDLE);
        assert_eq!((unused.connections, unused.sweeps_again), (vec![2], false));
        assert!(matches!(
            queue.release(3, later),
            Released::Kept { sweep: true }
        ));
    }
}
