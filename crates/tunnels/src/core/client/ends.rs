//! How a session gives up, is closed, and begins anew.

use std::time::Duration;

use super::super::Now;
use super::super::codec::{Keys, Violation, close};
use super::super::ranges::RangeSet;
use super::{ClientCore, Closing, MAX_REFUSALS, Ping};
use crate::Error;

impl ClientCore {
    pub(super) fn give_up(&mut self, now: Now) {
        if !self.has_work() {
            self.work_since = None;
            return;
        }
        let since = (*self.work_since.get_or_insert(now)).max(self.last_heard);
        let after = now.saturating_sub(since);
        let error = if self.refusals >= MAX_REFUSALS {
            Error::Refused
        } else if after < self.limits.give_up {
            return;
        } else if let (None, Some(reason)) = (&self.route, &self.no_route_reason) {
            Error::NoRoute {
                after,
                reason: reason.clone(),
            }
        } else {
            Error::Unreachable { after }
        };
        self.fail_work(&error);
        if self.closing != Closing::Open {
            self.closing = Closing::Closed;
        }
    }

    /// Everything that is under way fails; the session goes on as a new one.
    pub(super) fn fail_work(&mut self, error: &Error) {
        self.streams.fail_all(error);
        self.fail_pings(error);
        self.work_since = None;
        self.refusals = 0;
        self.failures = 0;
        self.not_before = Now::ZERO;
        self.renew();
    }

    pub(super) fn violated(&mut self, violation: Violation) {
        self.fail_work(&Error::Protocol(violation.0));
    }

    pub(super) fn closed_by_other(&mut self, code: u64, now: Now) {
        if matches!(self.closing, Closing::Saying(_)) {
            self.closing = Closing::Closed;
            return;
        }
        match code {
            close::UNKNOWN_SESSION => {
                self.streams.restart(&Error::SessionLost, now);
                for ping in self.pings.values_mut() {
                    if matches!(ping, Ping::Sent) {
                        *ping = Ping::Pending;
                    }
                }
                self.renew();
            }
            close::NO_ROOM => self.fail_work(&Error::Busy),
            close::VIOLATION => {
                self.fail_work(&Error::Protocol("the other side found a violation"))
            }
            code => self.fail_work(&Error::PeerClosed { code }),
        }
    }

    pub(super) fn start_closing(&mut self) {
        let known = !self.hello || self.next_number > self.first_number;
        self.closing = if known && self.route.is_some() {
            Closing::Saying(0)
        } else {
            Closing::Closed
        };
    }

    /// A session that was silent for so long that the other side may have forgotten it goes on under a new id, if nothing is lost by that.
    pub(super) fn renew_if_stale(&mut self, now: Now) {
        if !self.hello
            && self.streams.len() == 0
            && now.saturating_sub(self.last_heard) > self.limits.idle_session / 2
        {
            self.renew();
        }
    }

    pub(super) fn renew(&mut self) {
        self.id = (self.fresh_id)();
        self.hello = true;
        self.first_number = self.next_number;
        self.calls.clear();
        self.pace.forget_flight();
        self.lost_pending = RangeSet::default();
        self.lost_unconfirmed = RangeSet::default();
        self.settle_at = None;
        self.pace.restart();
        if let Some((tag, keys)) = &mut self.route {
            *keys = Keys::derive(&self.psk, self.id, *tag);
        }
    }

    pub(super) fn finish_ping(&mut self, nonce: u64, result: Result<Duration, Error>) {
        if let Some(ping) = self.pings.get_mut(&nonce) {
            *ping = Ping::Done(result);
            self.ping_events = true;
        }
    }

    pub(super) fn fail_pings(&mut self, error: &Error) {
        for ping in self.pings.values_mut() {
            if !matches!(ping, Ping::Done(_)) {
                *ping = Ping::Done(Err(error.clone()));
            }
        }
        self.ping_events = true;
    }
}
