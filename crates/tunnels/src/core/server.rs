//! The side that answers the calls: all sessions of all listeners of a node.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::Now;
use super::bucket::Bucket;
use super::codec::{Builder, Direction, Frame, Header, Keys, REFUSAL, RouteTag, Violation, close};
use super::streams::{Due, Event};
use crate::{Error, Limits, Psk, SessionId};

mod session;
use session::Session;

/// Sessions that were closed and are remembered, so that a call that was recorded does not open one of them again.
const REMEMBERED: usize = 4_096;
/// A session with streams that was silent for so long gives way to another of its listener. A client with open streams is told to ask
/// every two seconds at least.
const QUIET: Duration = Duration::from_secs(5);

/// A listener of this node.
pub(crate) type ListenerId = u64;
/// A session of a listener.
pub(crate) type SessionKey = (ListenerId, SessionId);
/// What the shell calls a call by.
pub(crate) type CallToken = u64;

struct Listener {
    psk: Psk,
    /// Streams that nobody accepted yet.
    unaccepted: usize,
    /// It ends: calls are only told so.
    closing: bool,
    /// Sessions that had streams when it ended and have not heard of it.
    untold: HashSet<SessionId>,
}

/// A call that waits for its reply.
struct Held {
    token: CallToken,
    session: SessionKey,
    number: u64,
    reply_max: usize,
    since: Now,
    until: Now,
}

pub(crate) struct ServerCore {
    limits: Limits,
    listeners: BTreeMap<ListenerId, Listener>,
    routes: HashMap<RouteTag, ListenerId>,
    sessions: BTreeMap<SessionKey, Session>,
    /// With what the client is told when it calls again.
    forgotten: HashMap<SessionKey, u64>,
    forgotten_order: VecDeque<SessionKey>,
    held: Vec<Held>,
    unproved: Bucket,
    next_listener: ListenerId,
    pub events: Vec<(SessionKey, Event)>,
}

impl ServerCore {
    pub fn new(limits: Limits) -> Self {
        ServerCore {
            unproved: Bucket::new(limits.unproved_per_second, Now::ZERO),
            limits,
            listeners: BTreeMap::new(),
            routes: HashMap::new(),
            sessions: BTreeMap::new(),
            forgotten: HashMap::new(),
            forgotten_order: VecDeque::new(),
            held: Vec::new(),
            next_listener: 0,
            events: Vec::new(),
        }
    }

    // Listeners and routes.

    pub fn listen(&mut self, psk: Psk) -> ListenerId {
        let id = self.next_listener;
        self.next_listener += 1;
        self.listeners.insert(
            id,
            Listener {
                psk,
                unaccepted: 0,
                closing: false,
                untold: HashSet::new(),
            },
        );
        id
    }

    pub fn add_route(&mut self, listener: ListenerId, route: RouteTag) {
        if self.listeners.contains_key(&listener) {
            self.routes.insert(route, listener);
        }
    }

    /// The route is gone. Sessions stay: their clients come back over another.
    pub fn remove_route(&mut self, route: RouteTag) {
        self.routes.remove(&route);
    }

    /// Ends the sessions of a listener. Clients that call it are told so, until it is [removed](Self::remove_listener). Returns the replies
    /// to calls that were held.
    pub fn close_listener(&mut self, id: ListenerId) -> Vec<(CallToken, Vec<u8>)> {
        let Some(listener) = self
            .listeners
            .get_mut(&id)
            .filter(|listener| !listener.closing)
        else {
            return Vec::new();
        };
        listener.closing = true;
        let alive = self
            .sessions
            .iter()
            .filter(|(key, session)| key.0 == id && !session.dead);
        let keys: Vec<SessionKey> = alive.clone().map(|(key, _)| *key).collect();
        listener.untold = alive
            .filter(|(_, session)| session.streams.len() > 0)
            .map(|(key, _)| key.1)
            .collect();
        for held in self.held.iter().filter(|held| held.session.0 == id) {
            listener.untold.remove(&held.session.1);
        }
        keys.into_iter()
            .flat_map(|key| self.end_session(key, &Error::Closed, close::DONE))
            .collect()
    }

    /// Whether a client with open streams has not heard yet that the listener ended.
    pub fn has_untold(&self, id: ListenerId) -> bool {
        self.listeners
            .get(&id)
            .is_some_and(|listener| !listener.untold.is_empty())
    }

    /// Forgets a listener and its routes.
    pub fn remove_listener(&mut self, id: ListenerId) {
        self.listeners.remove(&id);
        self.routes.retain(|_, listener| *listener != id);
    }

    /// The application took a stream from the listener's queue.
    pub fn accepted(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.unaccepted = listener.unaccepted.saturating_sub(1);
        }
    }

    // Streams.

    /// Does something to a session's streams. `None` when there is no such session (any more).
    pub fn with<T>(
        &mut self,
        key: &SessionKey,
        act: impl FnOnce(&mut super::streams::Streams) -> T,
    ) -> Option<T> {
        let session = self.sessions.get_mut(key)?;
        let result = act(&mut session.streams);
        self.events
            .extend(session.streams.events.drain(..).map(|event| (*key, event)));
        if session.dead && session.streams.len() == 0 {
            self.sessions.remove(key);
        }
        Some(result)
    }

    // Calls.

    /// Takes a call. The reply is returned, or comes from [`poll`](Self::poll) when the call is held.
    pub fn on_call(
        &mut self,
        token: CallToken,
        route: RouteTag,
        message: Bytes,
        now: Now,
    ) -> Vec<(CallToken, Vec<u8>)> {
        let mut ended = Vec::new();
        let mut replies = self.take_call(token, route, message, now, &mut ended);
        replies.extend(ended);
        replies
    }

    /// Takes a call. To `ended` go the replies to calls of a session that had to give way.
    fn take_call(
        &mut self,
        token: CallToken,
        route: RouteTag,
        message: Bytes,
        now: Now,
        ended: &mut Vec<(CallToken, Vec<u8>)>,
    ) -> Vec<(CallToken, Vec<u8>)> {
        let refusal = || vec![(token, REFUSAL.to_vec())];
        let Some((key, header, psk)) = self.addressee(route, &message) else {
            return refusal();
        };
        let known = self.sessions.contains_key(&key);
        // A stranger does not know the id of a session, so only what names none has to share.
        if !known && !self.unproved.take(now) {
            return refusal();
        }
        let keys = match self.sessions.get(&key) {
            Some(session) if session.route == route => session.keys.clone(),
            _ => Keys::derive(&psk, header.session, route),
        };
        if message.len() > self.limits.max_message.max(crate::MAX_MESSAGE)
            || !keys.verify(Direction::Call, &message)
        {
            return refusal();
        }
        if !known {
            self.unproved.refund();
        }
        let answer = |frame: Frame| {
            let mut builder = Builder::new(header.session, header.number, crate::MAX_MESSAGE);
            builder.push(&frame);
            vec![(token, builder.seal(&keys, Direction::Reply))]
        };
        let frames = match Frame::decode_all(&message) {
            Ok(frames) => frames,
            Err(violation) => {
                return self.violated(
                    key,
                    violation,
                    answer(Frame::Close {
                        code: close::VIOLATION,
                    }),
                );
            }
        };
        if self.sessions.get(&key).is_none_or(|session| session.dead) {
            let hello = frames
                .iter()
                .any(|frame| matches!(frame, Frame::Hello { .. }));
            let closing = self
                .listeners
                .get_mut(&key.0)
                .filter(|listener| listener.closing);
            if let Some(code) = self
                .forgotten
                .get(&key)
                .copied()
                .or(closing.is_some().then_some(close::DONE))
            {
                if let Some(listener) = closing {
                    listener.untold.remove(&header.session);
                }
                return answer(Frame::Close { code });
            }
            if !hello {
                return answer(Frame::Close {
                    code: close::UNKNOWN_SESSION,
                });
            }
            let Some(replies) = self.make_room(key.0, now) else {
                return answer(Frame::Close {
                    code: close::NO_ROOM,
                });
            };
            ended.extend(replies);
            self.sessions.insert(
                key,
                Session::new(
                    header.session,
                    route,
                    keys.clone(),
                    self.limits.clone(),
                    now,
                ),
            );
        }
        let over_budget = self.holds_too_much(&key);
        let Some(session) = self.sessions.get_mut(&key) else {
            return refusal();
        };
        if !session.accept_number(header.number) {
            return refusal();
        }
        session.last_call = now;
        if session.route != route {
            session.route = route;
            session.keys = keys.clone();
        }
        // What fills a gap is taken all the same: what lies beyond can be read then, and is held no longer.
        let has_to_wait = |frame: &Frame| match frame {
            Frame::Data { stream, offset, .. } => !session.streams.fills_gap(*stream, *offset),
            _ => false,
        };
        if over_budget && frames.iter().any(has_to_wait) {
            return answer(Frame::Busy { wait_ms: 100 });
        }
        let listener = self.listeners.get_mut(&key.0);
        let unaccepted = listener.map(|listener| &mut listener.unaccepted);
        let asked = match session.take(frames, unaccepted, &self.limits, now) {
            Ok(asked) => asked,
            Err(violation) => {
                return self.violated(
                    key,
                    violation,
                    answer(Frame::Close {
                        code: close::VIOLATION,
                    }),
                );
            }
        };
        self.events
            .extend(session.streams.events.drain(..).map(|event| (key, event)));
        if asked.closes {
            let mut replies =
                self.end_session(key, &Error::PeerClosed { code: close::DONE }, close::DONE);
            replies.extend(answer(Frame::Next {
                backlog: 0,
                wait_ms: 0,
                held_ms: 0,
            }));
            return replies;
        }
        // A reply to a call that its client has given up must not carry anything: it would be neither received nor named lost.
        let mut replies = Vec::new();
        self.held.retain(|held| {
            let given_up =
                held.session == key && asked.lost.iter().any(|range| range.contains(&held.number));
            if given_up {
                replies.push((held.token, REFUSAL.to_vec()));
            }
            !given_up
        });
        let hold = asked.hold.min(self.limits.hold);
        if session.wants_reply(now) || hold.is_zero() {
            replies.push((
                token,
                session.reply(header.number, asked.reply_max, Duration::ZERO, now),
            ));
            return replies;
        }
        self.held.push(Held {
            token,
            session: key,
            number: header.number,
            reply_max: asked.reply_max,
            since: now,
            until: now + hold,
        });
        replies.extend(self.release_excess(now));
        replies
    }

    /// Replies of held calls whose time has come, or for which there is data.
    pub fn poll(&mut self, now: Now) -> Vec<(CallToken, Vec<u8>)> {
        self.expire(now);
        let mut replies = Vec::new();
        let mut at = 0;
        while let Some(held) = self.held.get(at) {
            let ready = held.until <= now
                || self
                    .sessions
                    .get_mut(&held.session)
                    .is_none_or(|session| session.wants_reply(now));
            if ready {
                replies.extend(self.release(at, now));
            } else {
                at += 1;
            }
        }
        replies
    }

    /// When [`poll`](Self::poll) has something to do, without further input.
    pub fn next_wake(&self) -> Option<Now> {
        let held = self.held.iter().map(|held| {
            match self
                .sessions
                .get(&held.session)
                .map(|session| session.streams.due())
            {
                Some(Due::Now) => Now::ZERO,
                Some(Due::At(at)) => at.min(held.until),
                _ => held.until,
            }
        });
        let idle = self
            .sessions
            .values()
            .filter(|session| !session.dead)
            .map(|session| session.last_call + self.limits.idle_session);
        held.chain(idle).min()
    }

    /// Sessions that are alive.
    #[cfg(test)]
    pub fn session_count(&self) -> usize {
        self.sessions
            .values()
            .filter(|session| !session.dead)
            .count()
    }

    #[cfg(test)]
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Whether data of this session has to wait until more of what is held was read.
    fn holds_too_much(&self, key: &SessionKey) -> bool {
        let held = |session: &Session| session.streams.recv_held();
        let all: usize = self.sessions.values().map(held).sum();
        let shared = self.limits.buffered_bytes / 2;
        if all <= shared {
            return false;
        }
        let holders = self.sessions.values().filter(|s| held(s) > 0).count();
        all > self.limits.buffered_bytes
            || self.sessions.get(key).map_or(0, held) > shared / holders.max(1)
    }

    fn addressee(&self, route: RouteTag, message: &[u8]) -> Option<(SessionKey, Header, Psk)> {
        let id = *self.routes.get(&route)?;
        let listener = self.listeners.get(&id)?;
        let header = Header::parse(message)?;
        Some(((id, header.session), header, listener.psk.clone()))
    }

    /// Answers the held calls that are too many: of the session that holds most, the oldest.
    fn release_excess(&mut self, now: Now) -> Vec<(CallToken, Vec<u8>)> {
        let mut replies = Vec::new();
        while self.held.len() > self.limits.held_replies {
            let mut counts: HashMap<SessionKey, usize> = HashMap::new();
            for held in &self.held {
                *counts.entry(held.session).or_default() += 1;
            }
            let most = counts.values().copied().max().unwrap_or_default();
            let Some(at) = self
                .held
                .iter()
                .position(|held| counts.get(&held.session) == Some(&most))
            else {
                break;
            };
            replies.extend(self.release(at, now));
        }
        replies
    }

    fn release(&mut self, at: usize, now: Now) -> Option<(CallToken, Vec<u8>)> {
        let held = self.held.remove(at);
        let reply = match self.sessions.get_mut(&held.session) {
            Some(session) => session.reply(
                held.number,
                held.reply_max,
                now.saturating_sub(held.since),
                now,
            ),
            None => REFUSAL.to_vec(),
        };
        Some((held.token, reply))
    }

    fn violated(
        &mut self,
        key: SessionKey,
        violation: Violation,
        reply: Vec<(CallToken, Vec<u8>)>,
    ) -> Vec<(CallToken, Vec<u8>)> {
        tracing::debug!(session = ?key.1, violation = violation.0, "session closed: a proved call broke the rules");
        let mut replies = self.end_session(key, &Error::Protocol(violation.0), close::VIOLATION);
        replies.extend(reply);
        replies
    }

    /// Fails the streams of a session and forgets it once they are dropped. Its held calls are answered.
    fn end_session(
        &mut self,
        key: SessionKey,
        error: &Error,
        code: u64,
    ) -> Vec<(CallToken, Vec<u8>)> {
        let Some(session) = self.sessions.get_mut(&key) else {
            return Vec::new();
        };
        let mut replies = Vec::new();
        self.held.retain(|held| {
            if held.session == key {
                let mut builder = Builder::new(key.1, held.number, held.reply_max);
                builder.push(&Frame::Close { code });
                replies.push((held.token, builder.seal(&session.keys, Direction::Reply)));
            }
            held.session != key
        });
        session.dead = true;
        session.streams.fail_all(error);
        self.with(&key, |_| ());
        let code = if code == close::VIOLATION {
            close::UNKNOWN_SESSION
        } else {
            code
        };
        if self.forgotten.insert(key, code).is_none() {
            self.forgotten_order.push_back(key);
        }
        while self.forgotten_order.len() > REMEMBERED {
            if let Some(oldest) = self.forgotten_order.pop_front() {
                self.forgotten.remove(&oldest);
            }
        }
        replies
    }

    /// Sessions that have been silent for too long end.
    fn expire(&mut self, now: Now) {
        let after = self.limits.idle_session;
        let silent: Vec<SessionKey> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.dead && session.last_call + after <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in silent {
            // None of its calls is held: holds are shorter.
            self.end_session(key, &Error::Unreachable { after }, close::UNKNOWN_SESSION);
        }
    }

    /// Makes room for one more session of a listener, at the cost of the listener that has most: there the longest silent one goes, of those
    /// without streams if there are any. So whoever fills one listener with sessions keeps nobody away from another.
    fn make_room(&mut self, listener: ListenerId, now: Now) -> Option<Vec<(CallToken, Vec<u8>)>> {
        self.expire(now);
        let alive = || self.sessions.iter().filter(|(_, session)| !session.dead);
        if alive().count() < self.limits.sessions {
            return Some(Vec::new());
        }
        let mut counts: BTreeMap<ListenerId, usize> = BTreeMap::new();
        for (key, _) in alive() {
            *counts.entry(key.0).or_default() += 1;
        }
        // Where several have as many, its own.
        let crowded = counts
            .iter()
            .max_by_key(|&(&id, &count)| (count, id == listener))
            .map(|(&id, _)| id);
        let given_up = alive()
            .filter(|(key, _)| Some(key.0) == crowded)
            .min_by_key(|(_, session)| (session.streams.len() > 0, session.last_call));
        let (&key, session) = given_up?;
        let in_use = session.streams.len() > 0 && now < session.last_call + QUIET;
        if in_use && key.0 == listener {
            return None;
        }
        Some(self.end_session(key, &Error::Closed, close::UNKNOWN_SESSION))
    }
}
