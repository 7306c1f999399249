//! What was compiled, on its way into the kernel: links and routes at once, all else by the backend's thread.

use compile::{Compiled, NetChange};

use node::drift::Found;

use super::Node;
use super::following;
use crate::datapath::{Answer, Followed, Look, Looked, Subsystem};

/// Units that are made together: some 40 ms of work.
const PIECE: usize = 512;

impl Node {
    /// Takes what was compiled; the kernel has of it what need not go with the rest.
    pub(super) fn carry(&mut self, mut compiled: Compiled) {
        compiled.pieces.take().into_iter().for_each(|pieces| self.base.datapath.backend.take(pieces));
        let is_of_links =
            compiled.net != NetChange::Nothing || self.stale.failed.contains_key(&Subsystem::Net);
        if is_of_links && self.may_make_links() {
            self.apply_compiled(&compiled);
            self.repair();
        }
        self.compiled_diagnostics(&compiled);
    }

    /// Whether there is something that nobody waits for, and nothing that somebody does. Before all is compiled once nobody is
    /// served, and the next piece is compiled while the one before is on its way.
    pub(super) fn may_advance(&self) -> bool {
        let Some(compiler) = &self.compiler else { return false };
        let backend = &self.base.datapath.backend;
        let has_room = if compiler.is_whole() { backend.is_done() } else { !backend.is_open() };
        has_room && compiler.is_behind()
    }

    /// One piece of it: whoever comes meanwhile waits for no more.
    pub(super) fn advance(&mut self) {
        if !self.may_advance() {
            return;
        }
        let (Some(synced), Some(compiler)) = (self.cluster.synced(), self.compiler.as_mut()) else { return };
        let compiled = compiler.advance(synced, PIECE);
        self.carry(compiled);
        self.send();
    }

    /// Has the kernel follow what is compiled, unless it is following already: then what comes meanwhile goes together.
    /// As far as it may: before all is compiled once, what is left of the process before may be what is not compiled yet.
    pub(super) fn send(&mut self) {
        let Some(compiler) = self.compiler.as_ref().filter(|compiler| compiler.has_begun()) else { return };
        let (through, whole) = (compiler.made_through(), compiler.is_whole());
        let backend = &mut self.base.datapath.backend;
        let is_awaited = self.attachments.waits_for() > Some(backend.followed_through());
        if backend.is_following() || backend.is_done() && !is_awaited && !self.following.has(through) {
            return;
        }
        self.sources.send();
        if !backend.follow(through, whole) {
            self.carried(&Followed { through, ..Followed::default() });
        }
    }

    /// What has become of what the backend's thread was given.
    pub(super) fn hear_backend(&mut self) -> anyhow::Result<()> {
        while let Some(answer) = self.base.datapath.backend.hear()? {
            self.answered(answer);
        }
        Ok(())
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Followed(followed) => self.kernel_followed(followed),
            Answer::Looked(looked) => self.looked(looked),
        }
    }

    fn kernel_followed(&mut self, mut followed: Followed) {
        if followed.taken || followed.compared.is_some() {
            self.base.metrics.applied(Subsystem::Nft.name(), followed.took);
        }
        if let Some(error) = followed.refused.take() {
            self.note(Subsystem::Nft, Err(error));
        }
        match followed.compared.take() {
            Some(done) => {
                self.base.metrics.looked(Subsystem::Nft.name());
                self.compared(Subsystem::Nft, done, false);
            }
            None if followed.taken => self.note(Subsystem::Nft, Ok(())),
            None => {}
        }
        if followed.is_first {
            // Links that waited for the guard.
            self.repair();
        }
        self.carried(&followed);
    }

    /// What comes after the kernel follows all that a change means.
    fn carried(&mut self, followed: &Followed) {
        self.lose_sources();
        let following::Followed { keys, exact, first } =
            self.following.through(followed.through, &self.changed);
        if keys.is_empty() && !first {
            return;
        }
        self.forget_stale_flows(&exact);
        self.answer_checks(&keys, first);
        self.base.zone.update(&self.cluster, &keys);
    }

    fn looked(&mut self, Looked { why, was_needed, done }: Looked) {
        if was_needed {
            self.base.metrics.looked(Subsystem::Nft.name());
        }
        match (why, done) {
            (Look::Mend, done) => self.compared(Subsystem::Nft, done, true),
            (Look::Only, done) => self.only_looked(Subsystem::Nft, done),
            (Look::Left, Ok(left)) => self.found(Subsystem::Nft, Found::Left(left)),
            (Look::Left, Err(_)) => {}
        }
    }

    /// Until the kernel has all that changed, for tests that play the loop.
    #[cfg(test)]
    pub(super) fn settle_all(&mut self) {
        loop {
            self.settle();
            self.send();
            self.advance();
            if self.base.datapath.backend.is_done() && !self.may_advance() {
                return;
            }
            if !self.base.datapath.backend.is_done() {
                let answer = self.base.datapath.backend.wait().expect("its thread lives");
                self.answered(answer);
            }
        }
    }

    /// With what is being looked at.
    #[cfg(test)]
    pub(super) fn mend_all(&mut self) {
        self.mend();
        while self.base.datapath.backend.is_looking() {
            let answer = self.base.datapath.backend.wait().expect("its thread lives");
            self.answered(answer);
        }
    }
}

#[cfg(test)]
mod tests;
