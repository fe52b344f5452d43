//! Answers that stay true for a while. Of a bounded number of questions: the oldest is forgotten
//! first, and all of them after their time.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Answers by question.
#[derive(Debug)]
pub(super) struct Memory<Q, A> {
    inner: Mutex<Inner<Q, A>>,
    most: usize,
    /// How long an answer is true.
    time: Duration,
}

#[derive(Debug)]
struct Inner<Q, A> {
    answers: HashMap<Q, (Instant, A)>,
    /// In the order in which they were learnt, which is that in which they end.
    order: VecDeque<(Instant, Q)>,
}

impl<Q: Clone + Eq + Hash, A: Clone> Memory<Q, A> {
    pub(super) fn new(most: usize, time: Duration) -> Self {
        let inner = Inner { answers: HashMap::new(), order: VecDeque::new() };
        Self { inner: Mutex::new(inner), most, time }
    }

    /// What is known and still true at `now`.
    pub(super) fn get(&self, question: &Q, now: Instant) -> Option<A> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, answer) = inner.answers.get(question)?;
        (now < *until).then(|| answer.clone())
    }

    /// Learns an answer at `now`.
    pub(super) fn learn(&self, question: Q, answer: A, now: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now + self.time;
        inner.answers.insert(question.clone(), (until, answer));
        inner.order.push_back((until, question));
        while inner.order.len() > self.most
            || inner.order.front().is_some_and(|(until, _)| *until <= now)
        {
            let Some((until, oldest)) = inner.order.pop_front() else { break };
            // One that was learnt again since stays.
            if inner.answers.get(&oldest).is_some_and(|(newer, _)| *newer == until) {
                inner.answers.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn answers_are_true_for_their_time() {
        let (memory, now) = (Memory::new(2, SECOND), Instant::now());
        memory.learn("a", 1, now);
        memory.learn("a", 2, now + SECOND / 2);
        assert_eq!(memory.get(&"a", now), Some(2));
        assert_eq!(memory.get(&"a", now + SECOND), Some(2));
        assert_eq!(memory.get(&"a", now + 2 * SECOND), None);
        // Nothing of it is kept any longer.
        memory.learn("b", 3, now + 2 * SECOND);
        let inner = memory.inner.lock().unwrap();
        assert_eq!((inner.answers.len(), inner.order.len()), (1, 1));
    }

    #[test]
    fn answers_are_bounded_in_number() {
        let (memory, now) = (Memory::new(2, SECOND), Instant::now());
        for (n, question) in ["a", "b", "c"].into_iter().enumerate() {
            memory.learn(question, n, now);
        }
        let known = ["a", "b", "c"].map(|question| memory.get(&question, now));
        assert_eq!(known, [None, Some(1), Some(2)]);
        for n in 0..100 {
            memory.learn("d", n, now);
        }
        let inner = memory.inner.lock().unwrap();
        assert!(inner.answers.len() <= 2 && inner.order.len() <= 2);
    }
}
