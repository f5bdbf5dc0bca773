#!/usr/bin/env python3
"""Explicit-state model check of the restore of one shard beside others that live on.
Usage: python3 alone.py [-v] [--deep] [NAME ...]   (no name: every check, then every planted bug; -v prints traces.
--deep: larger checks, for some minutes.)

Steps are transactions of the code, or reads of one store: what a mover does (evsync/sharding/handover.py) and what the
stores answer (evsync/stores/slot_steps.py), a restore (`restore_beside`, evsync/archive/rescue.py), and followers
(evsync/projections/running/barrier.py, feed.py). An append is one step: mc.py has those of writers and late requests.

The lost store lives on as a zombie: processes that were begun with it append to it and move slots to and from it, up to
any time. A mover may be killed between any two steps, or wait there for ever. A restore may be killed, and begun again.
Each end of the lost log is tried as the end of its backup. Followers see nothing but logs, and logs grow: all that a
follower can have applied at any time is explored over the logs of a quiet state, with the lost store and then without.

A restore that refuses is an end: then all shards are restored together, from their backups. Slots that came back from
the lost shard and left again, or came to it behind others that had left, between its backup and its loss, are refused.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from mc import Bad, explore, put, run

UNKNOWN = -1


class Refused(Exception):
    """ArchiveIncomplete: slots have come back behind others that the archive does not know to have left."""


# An event of the service's own: (version, shard, incarnation) of the log that it was appended to; so it is found once.
# The first two fields of a log's entries are the kind and the incarnation that it was written in:
#   E inc slot event                                       C inc slot epoch to history (position, incarnation) it had
#   O inc slot epoch source (position, incarnation) before ancestors      R inc parent position length      F inc {shard: inc}
class Store(NamedTuple):
    shard: int
    inc: int
    ancestry: tuple
    """(incarnation, last position), oldest first."""
    log: tuple
    rows: tuple
    """By slot: () or (epoch, to, position, history); to is UNKNOWN where it is open."""
    held: tuple
    """By slot: all events of it, in their order, own ones and imports."""

    def inc_at(self, position):
        return next((inc for inc, last in self.ancestry if position <= last), self.inc)

    def opened(self, slot):
        return bool(self.rows[slot]) and self.rows[slot][1] == UNKNOWN

    def epoch(self, slot):
        return self.rows[slot][0] if self.rows[slot] else 0

    def fences(self):
        return dict(next((e[2] for e in reversed(self.log) if e[0] == 'F' and e[1] == self.inc), ()))

    @property
    def ancestors(self):
        return tuple(inc for inc, _ in self.ancestry)

    def takes_from(self, source):
        """check_fence."""
        now = self.fences().get(source.shard)
        return now in (None, source.inc, *source.ancestors)

    def with_entry(self, slot, row, *entry):
        return self._replace(log=self.log + ((entry[0], self.inc, *entry[1:]),), rows=put(self.rows, slot, row))

    def appended(self, slot):
        event = (len(self.held[slot]) + 1, self.shard, self.inc)
        longer = put(self.held, slot, self.held[slot] + (event,))
        return self.with_entry(slot, self.rows[slot], 'E', slot, event)._replace(held=longer)


class Mover(NamedTuple):
    view: tuple
    """The incarnation, by shard, of the stores that its process was begun with; UNKNOWN: it does without that one."""
    at: str = 'idle'
    slot: int = 0
    source: int = 0
    to: int = 0
    base: tuple = ()
    """What it believes to have arrived."""
    chunk: tuple = ()
    """What it has read behind that."""
    opening: tuple = ()
    """(epoch, (position, incarnation), history) of the slot that was closed."""


class Attempt(NamedTuple):
    """A restore under way. The shard's store is in `old` from now on, and None among the others."""

    shard: int
    inc: int
    end: int
    step: int = 0
    """Others that were fenced, and then asked."""
    asked: tuple = ()
    """The head of each other shard when it was asked."""


class State(NamedTuple):
    stores: tuple
    old: tuple
    """Stores that were lost, in the order of their losses."""
    movers: tuple
    attempt: Attempt | str | None
    appends: int
    moves: int
    losses: tuple
    """Which shards will be lost, one after the other."""
    late: int
    """Appends to lost stores."""
    restarts: int
    """Of restores."""
    next_inc: int


def alone(
    shards=2, slots=2, home=0, losses=(0,), movers=1, appends=2, moves=2, late=0, restarts=0, bug='',
):
    """The model; `home` is the first shard, where all slots are at first."""
    stores = tuple(
        Store(x, 0, (), (), (((1, UNKNOWN, 0, ()) if x == home else ()),) * slots, ((),) * slots) for x in range(shards)
    )
    init = State(stores, (), (Mover((0,) * shards),) * movers, None, appends, moves, losses, late, restarts, 1)
    alike = [x for x in range(shards) if x != home and x not in losses]

    def touched(s):
        """What can no longer be exchanged for what is like it. Of slots and shards that are alike, the first is used
        before the second: every run is like one in which it is so."""
        used = {e[2] for x in (*s.stores, *s.old) if x for e in x.log if e[0] in 'ECO'}
        named = {e[4] for x in (*s.stores, *s.old) if x for e in x.log if e[0] == 'C'}
        for m in s.movers:
            if m.at != 'idle':
                used.add(m.slot)
                named.add(m.to)
        named |= {x.shard for x in s.stores if x and any(x.held)}
        free = [k for k in range(slots) if k not in used][1:]
        return free, [x for x in alike if x not in named][1:]

    def store_of(s, shard, inc):
        now = s.stores[shard]
        if now is not None and now.inc == inc:
            return now
        return next((x for x in s.old if (x.shard, x.inc) == (shard, inc)), None)

    def stored(s, new):
        """The state with a store in place of what it was."""
        if s.stores[new.shard] is not None and s.stores[new.shard].inc == new.inc:
            return s._replace(stores=put(s.stores, new.shard, new))
        return s._replace(old=tuple(new if (x.shard, x.inc) == (new.shard, new.inc) else x for x in s.old))

    def one_owner(s):
        for slot in range(slots):
            if sum(1 for x in s.stores if x and x.opened(slot)) > 1:
                raise Bad('two shards own the slot')
        return s

    def actions(s):
        if s.attempt == 'refused':
            return
        idle_slots, idle_shards = touched(s)
        for x in s.stores:
            for slot in range(slots):
                if s.appends and x and x.opened(slot) and slot not in idle_slots:
                    yield f'append to slot {slot} at {x.shard}', stored(s, x.appended(slot))._replace(appends=s.appends - 1)
        for x in s.old:
            for slot in range(slots):
                if s.late and x.opened(slot) and slot not in idle_slots:
                    yield f'late append to slot {slot} at lost {x.shard}', stored(s, x.appended(slot))._replace(late=s.late - 1)
        for i, m in enumerate(s.movers):
            for label, t, m2 in mover(s, m, idle_slots, idle_shards):
                yield f'M{i} {label}', t._replace(movers=tuple(sorted(put(s.movers, i, m2))))
        yield from restoring(s)

    def mover(s, m, idle_slots, idle_shards):
        newest = Mover(tuple(x.inc if x else UNKNOWN for x in s.stores))
        if m.at != 'idle' or (m.view != newest.view and UNKNOWN not in newest.view):
            yield 'killed; another process', s, newest
        if m.at == 'idle' and m.view == newest.view:
            for x in s.old:  # named by mistake: looked at when its store and the others are opened
                others = [y for y in s.stores if y and y.shard != x.shard]
                if s.attempt is None and all(y.takes_from(x) for y in others):
                    yield f'another process, with lost {x.shard}', s, Mover(put(m.view, x.shard, x.inc))
        if m.at == 'idle':
            for slot in range(slots):
                for x in range(shards):
                    source = store_of(s, x, m.view[x])
                    if source is None or not source.rows[slot] or slot in idle_slots:
                        continue
                    for y in range(shards):
                        to = store_of(s, y, m.view[y])
                        if y == x or to is None or y in idle_shards:
                            continue
                        if source.opened(slot) and s.moves:
                            yield looked(s, m, slot, source, to, ())
                        epoch, bound_for, position, history = source.rows[slot]
                        if bound_for == y and to.epoch(slot) < epoch:
                            yield looked(s, m, slot, source, to, (epoch, (position, source.inc_at(position)), history))
            return
        source, to = store_of(s, m.source, m.view[m.source]), store_of(s, m.to, m.view[m.to])
        nothing, slot = Mover(m.view), m.slot
        if m.at == 'import':
            fenced = not to.takes_from(source) and bug != 'import_not_fenced'
            if fenced or to.opened(slot) or to.held[slot] != m.base:
                yield f'import of slot {slot} into {to.shard} refused', s, nothing
            else:
                now = m.base + m.chunk
                step = 'open' if m.opening else 'close'
                t = stored(s, to._replace(held=put(to.held, slot, now)))
                yield f'imports {len(m.chunk)} of slot {slot} into {to.shard}', t, m._replace(at=step, base=now, chunk=())
        elif m.at == 'close':
            if not source.opened(slot):
                yield f'close of slot {slot} at {source.shard} refused', s, nothing
                return
            epoch, history, position = source.epoch(slot) + 1, source.held[slot], len(source.log) + 1
            new = source.with_entry(slot, (epoch, m.to, position, history), 'C', slot, epoch, m.to, history, (0, UNKNOWN))
            chunk = history[len(m.base):]
            m2 = m._replace(at='import' if chunk else 'open', chunk=chunk, opening=(epoch, (position, source.inc), history))
            yield f'closes slot {slot} at {source.shard} for {m.to}', stored(s, new), m2
        elif m.at == 'open':
            epoch, closed, history = m.opening
            if not to.takes_from(source) or to.epoch(slot) >= epoch or to.held[slot] != history:
                yield f'opening of slot {slot} at {to.shard} refused', s, nothing
            else:
                row, before = (epoch, UNKNOWN, 0, ()), len(to.log)
                new = to.with_entry(slot, row, 'O', slot, epoch, m.source, closed, before, source.ancestors)
                yield f'opens slot {slot} at {to.shard}, epoch {epoch}', one_owner(stored(s, new)), nothing

    def looked(s, m, slot, source, to, opening):
        """A mover reads what there is of a slot, and has to do."""
        there, arrived = source.held[slot], to.held[slot]
        common = min(len(there), len(arrived))
        if there[:common] != arrived[:common]:
            if s.stores[source.shard] is source and s.stores[to.shard] is to:
                raise Bad(f'what shards hold of slot {slot} differs: {there} and {arrived}')
            return f'finds that slot {slot} differs in a lost store', s, m
        chunk = there[len(arrived):]
        at = 'import' if chunk else 'open' if opening else 'close'
        m2 = Mover(m.view, at, slot, source.shard, to.shard, arrived, chunk, opening)
        label = f'looks at slot {slot}, {source.shard} to {to.shard}'
        return label, s if opening else s._replace(moves=s.moves - 1), m2

    def restoring(s):
        a = s.attempt
        if a is None:
            if s.losses:
                lost = s.stores[s.losses[0]]
                for end in ends(lost):
                    t = s._replace(stores=put(s.stores, lost.shard, None), old=s.old + (lost,), losses=s.losses[1:])
                    t = t._replace(attempt=Attempt(lost.shard, s.next_inc, end), next_inc=s.next_inc + 1)
                    yield f'shard {lost.shard} is lost; its backup ends at {end}', t
            return
        lost = s.old[-1]
        others = [x for x in s.stores if x]
        if s.restarts and a.step:
            for end in ends(lost):
                t = s._replace(attempt=Attempt(a.shard, s.next_inc, end), next_inc=s.next_inc + 1, restarts=s.restarts - 1)
                yield f'restore killed; begun again, to {end}', t
        first, then = (asking, fencing) if bug == 'ask_before_fence' else (fencing, asking)
        if a.step < len(others):
            yield first(s, a, others[a.step])
        elif a.step < 2 * len(others):
            yield then(s, a, others[a.step - len(others)])
        else:
            try:
                new = rescued(a, lost, others, slots, home, bug)
            except Refused:
                yield 'restore refused', s._replace(attempt='refused')
                return
            yield 'restore committed', one_owner(s._replace(stores=put(s.stores, a.shard, new), attempt=None))

    def fencing(s, a, other):
        t = s._replace(attempt=a._replace(step=a.step + 1))
        if bug == 'no_fence' or (bug == 'first_fence_counts' and a.shard in other.fences()):
            return 'fences nothing', t
        said = tuple(sorted({**other.fences(), a.shard: a.inc}.items()))
        return f'fences {other.shard}', stored(t, other._replace(log=other.log + (('F', other.inc, said),)))

    def asking(s, a, other):
        return f'asks {other.shard}', s._replace(attempt=a._replace(step=a.step + 1, asked=a.asked + (len(other.log),)))

    def final(s):
        if s.attempt == 'refused':
            return
        if s.attempt is not None or any(m.at != 'idle' for m in s.movers):
            raise Bad('stuck')
        check_whole(s.stores, slots)
        check_followers(s.stores, s.old, slots, bug)

    return init, actions, final


@cache
def _ends(log):
    return [n for n in range(len(log) + 1) if not any(e[0] == 'R' and p < n < p + e[4] for p, e in enumerate(log))]


def ends(store):
    """Where commits of its log end: up to where it may have been archived."""
    return _ends(store.log)


# ---- evsync/archive/rescue.py

class Said(NamedTuple):
    """SlotEvent, and in which shard's log."""

    shard: int
    position: int
    epoch: int
    other: int
    history: tuple | None
    closed: tuple
    before: int


def said_of(shard, log, slot):
    for p, e in enumerate(log, 1):
        if e[0] == 'C' and e[2] == slot:
            yield Said(shard, p, e[3], e[4], e[5], e[6], 0)
        elif e[0] == 'O' and e[2] == slot:
            yield Said(shard, p, e[3], e[4], None, e[5], e[6])


def is_of(opened, closed, log):
    return opened.closed in ((closed.position, log.inc_at(closed.position)), closed.closed)


class Stay:
    def __init__(self, epoch, own, came, opened):
        self.epoch, self.own, self.came, self.was_opened = epoch, own, came, opened
        self.begin, self.end, self.left, self.found, self.common = (), None, None, [], ()

    @property
    def told_of(self):
        return not self.was_opened and (self.left is not None or bool(self.found))


def rescued(a, lost, others, slots, home, bug):
    """The store that is made of a log's archive and what the others have of it. Raises Refused, and Bad."""
    log, heads = lost.log[:a.end], dict(zip([x.shard for x in others], a.asked, strict=True))
    stores = {x.shard: x for x in others}
    ancestry = tuple((inc, min(last, a.end)) for inc, last in (*lost.ancestry, (lost.inc, a.end)))
    new = Store(a.shard, a.inc, ancestry, log, ((),) * slots, ((),) * slots)
    by_slot = [
        [*said_of(a.shard, log, k), *(t for x in others for t in said_of(x.shard, x.log[:heads[x.shard]], k))]
        for k in range(slots)
    ]
    states = {x.shard: [row_of(x.log[:heads[x.shard]], k, x.shard == home) for k in range(slots)] for x in others}
    first = not any(row and row[0] == 1 for rows in states.values() for row in rows)
    first = first and not any(t.epoch == 2 and t.history is not None and t.shard != a.shard for told in by_slot for t in told)
    opened = [{t.epoch: t for t in told if t.history is None} for told in by_slot]
    closed = [{t.epoch: t for t in told if t.history is not None} for told in by_slot]
    if any(len(o) + len(c) < len(told) for o, c, told in zip(opened, closed, by_slot, strict=True)):
        raise Bad('refused: logs contradict one another')
    items, held = [], []
    for slot in range(slots):
        stays = list(stays_of(slot, a.shard, log, first, opened[slot], closed[slot], stores))
        _, is_open, newest = max((row[0], row[1] == UNKNOWN, -x) if row else (0, False, -x) for x, row in of_slot(states, slot))
        source = max(others, key=lambda x: 0 if x.opened(slot) else len(x.held[slot]))
        if bug == 'any_open':
            source = next((x for x in others if states[x.shard][slot][1:2] == (UNKNOWN,)), source)
        elif is_open:
            source = stores[-newest]
        placed, n = [], 0
        positions = {e[3]: p for p, e in enumerate(log, 1) if e[0] == 'E'}
        placed += [((positions[e], 0), e) for stay in stays for e in stay.own]
        for index, event in enumerate(source.held[slot]):
            at = sort(event, index, stays, opened[slot], a.end)
            if at is not None:
                n += 1
                placed.append(((at, n), event))
        for stay in stays:
            least = stay.end if stay.left is not None else stay.begin
            if len(source.held[slot]) < len(least) or stay.common != stay.own[:len(stay.common)]:
                raise Bad(f'refused: the archive has something else of slot {slot}')
            if stay.told_of and stay.came is not None and bug != 'no_refusal':
                check_behind(stay.came, set(), a.shard, opened, closed)
            if stay.told_of and stay.came is not None and bug != 'no_opened':
                at, before = stay.came.position, stores[stay.came.shard]
                said = (at, before.inc_at(at))
                items.append(('O', a.inc, slot, stay.epoch, before.shard, said, a.end, before.ancestors))
            if bug != 'no_rescue':
                items += [('E', a.inc, slot, e) for e in stay.found]
                placed += [((a.end + 1, k), e) for k, e in enumerate(stay.found)]
            if stay.left is not None and bug != 'no_closed':
                was = (0, UNKNOWN) if bug == 'closed_elsewhere' else stay.left.closed
                items.append(('C', a.inc, slot, stay.epoch + 1, stay.left.shard, stay.end, was))
        # In the places of imports and positions of the log: what the restored store reads.
        placed = [p for p in placed if bug != 'no_imports' or p[0][1] == 0 or p[0][0] > a.end]
        held.append(tuple(e for _, e in sorted(placed)))
    says = () if bug == 'no_own_fence' else tuple((x.shard, x.inc) for x in others)
    log += (('R', a.inc, new.inc_at(a.end) if a.end else UNKNOWN, a.end, len(items) + 2), ('F', a.inc, says), *items)
    rows = tuple(row_of(log, slot, first) for slot in range(slots))
    return new._replace(log=log, held=tuple(held), rows=rows)


def of_slot(states, slot):
    return [(x, rows[slot]) for x, rows in states.items()]


def row_of(log, slot, first):
    row = (1, UNKNOWN, 0, ()) if first else ()
    for p, e in enumerate(log, 1):
        if e[0] == 'C' and e[2] == slot:
            row = (e[3], e[4], p, e[5])
        elif e[0] == 'O' and e[2] == slot:
            row = (e[3], UNKNOWN, 0, ())
    return row


def stays_of(slot, shard, log, first, opened, closed, stores):
    own, epoch = {}, 1
    for e in log:
        if e[0] in 'CO' and e[2] == slot:
            epoch = e[3]
        elif e[0] == 'E' and e[2] == slot:
            own[epoch] = own.get(epoch, ()) + (e[3],)
    epochs = {1} if first else set()
    for told, here, there in ((opened, 0, -1), (closed, -1, 0)):
        epochs |= {e + here for e, t in told.items() if t.shard == shard}
        epochs |= {e + there for e, t in told.items() if t.other == shard}
    for epoch in sorted(epochs | own.keys()):
        came, since = closed.get(epoch), opened.get(epoch)
        stay = Stay(epoch, own.get(epoch, ()), came, epoch == 1 or since is not None)
        if epoch > 1 or not first:
            if came is None or came.shard == shard or came.other != shard:
                raise Bad(f'refused: how slot {slot} came in epoch {epoch}')
            stay.begin = came.history
            if since and not (since.shard == shard and is_of(since, came, stores[came.shard])):
                raise Bad(f'refused: how slot {slot} was opened in epoch {epoch}')
        left, gone = closed.get(epoch + 1), opened.get(epoch + 1)
        if left is not None:
            if left.shard != shard or (gone is not None and gone.shard != left.other):
                raise Bad(f'refused: how slot {slot} left into epoch {epoch + 1}')
            stay.end = left.history
        elif gone is not None:
            stay.left, stay.end = gone, history_at(stores[gone.shard], slot, gone.position)
        yield stay


def history_at(store, slot, position):
    """What a shard had of a slot when it was opened there."""
    for e in store.log[position:]:
        if e[0] in 'EC' and e[2] == slot:
            return store.held[slot][:e[3][0] - 1] if e[0] == 'E' else e[5]
    return store.held[slot]


def sort(event, index, stays, opened, end):
    before = None
    for stay in stays:
        if index < len(stay.begin):
            if before is not None and before.left is not None:
                return None
            return opened[stay.epoch].before if stay.epoch in opened else end
        if stay.end is None or index < len(stay.end):
            if index >= len(stay.begin) + len(stay.own):
                stay.found.append(event)
            else:
                stay.common += (event,)
            return None
        before = stay
    return None


def check_behind(came, seen, lost, opened, closed):
    if came in seen:
        return
    seen.add(came)
    for slot, by_epoch in enumerate(opened):
        for told in by_epoch.values():
            if told.shard != came.shard or told.position > came.position:
                continue
            before = closed[slot].get(told.epoch)
            if before is None:
                raise Refused
            if before.shard != lost:
                check_behind(before, seen, lost, opened, closed)


# ---- what holds when nobody is at work

def check_whole(stores, slots):
    for slot in range(slots):
        owners = [x for x in stores if x.opened(slot)]
        if len(owners) != 1:
            raise Bad('a slot is open nowhere, and nobody can open it')
        whole = owners[0].held[slot]
        if [e[0] for e in whole] != list(range(1, len(whole) + 1)):
            raise Bad(f'the versions of slot {slot} are {whole}')
        for x in stores:
            if x.held[slot] != whole[:len(x.held[slot])]:
                raise Bad(f'shard {x.shard} has of slot {slot} what its owner has not: an event was lost')
        logged = sorted(e[3] for x in stores for e in x.log if e[0] == 'E' and e[2] == slot)
        if logged != sorted(whole):
            raise Bad(f'logs have other events of slot {slot} than its owner: {logged}, {whole}')
        told = [t for x in stores for t in said_of(x.shard, x.log, slot)]
        closed = {t.epoch: t for t in told if t.history is not None}
        opened = {t.epoch: t for t in told if t.history is None}
        if len(closed) + len(opened) < len(told) or closed.keys() != opened.keys():
            raise Bad(f'logs do not say where slot {slot} was: they cannot be restored together')
        for epoch, o in opened.items():
            c = closed[epoch]
            if (o.shard, c.shard) != (c.other, o.other) or not is_of(o, c, stores[c.shard]) or c.history != whole[:len(c.history)]:
                raise Bad(f'slot {slot} was opened into epoch {epoch} by what no log says')


def check_followers(stores, old, slots, bug):
    views, view = [stores], stores
    for lost in reversed(old):
        view = put(view, lost.shard, lost)
        views.insert(0, view)
    _followers(tuple(tuple((x.inc, x.ancestry, x.log) for x in view) for view in views), slots, bug)


@cache
def _followers(views, slots, bug):
    """All that followers can have applied of these logs, as each is now and as it was before its store was lost."""
    starts = {(((UNKNOWN, 0),) * len(views[0]), ((),) * slots)}
    for view in views:
        last, reached, todo = view is views[-1], set(starts), list(starts)
        while todo:
            state = todo.pop()
            steps = list(follow(view, *state, bug))
            if last and not steps:
                ended(view, state, slots, bug)
            for t in steps:
                if t not in reached:
                    reached.add(t)
                    todo.append(t)
        starts = reached


def inc_at(log, position):
    inc, ancestry, _ = log
    return next((i for i, last in ancestry if position <= last), inc)


def stopped(view, cuts, bug):
    """Feed._check: it has applied what is no part of a log."""
    if bug == 'ahead_unnoticed':
        return any(at > len(log[2]) for log, (_, at) in zip(view, cuts, strict=True))
    return any(inc != UNKNOWN and inc_at(log, at) != inc for log, (inc, at) in zip(view, cuts, strict=True))


def follow(view, cuts, applied, bug):
    for x, (known, at) in enumerate(cuts):
        inc, ancestry, log = view[x]
        if at >= len(log) or (known != UNKNOWN and inc_at(view[x], at) != known and bug != 'ahead_unnoticed'):
            continue
        length = log[at][4] if log[at][0] == 'R' and bug != 'split_commit' else 1
        commit, now = log[at:at + length], applied
        if any(e[0] == 'O' and not passed(view[e[4]], cuts[e[4]], e[5], e[7], bug) for e in commit):
            continue
        for e in commit:
            if e[0] == 'E':
                if e[3][0] != len(now[e[2]]) + 1:
                    raise Bad(f'a follower applies v{e[3][0]} of slot {e[2]} behind {len(now[e[2]])} events')
                now = put(now, e[2], now[e[2]] + (e[3],))
        yield put(cuts, x, (commit[-1][1], at + length)), now


def passed(log, cut, closed, ancestors, bug):
    """applied_in, place_of."""
    (known, at), (inc, ancestry, _) = cut, log
    place = closed[0]
    if inc in ancestors and inc != closed[1] and bug != 'stale_view' and (bug != 'stale_again' or not ancestry):
        return False
    if ancestry and inc_at(log, place) != closed[1] and bug != 'barrier_by_position':
        place = next((last for i, last in ancestry if i == closed[1]), ancestry[-1][1]) + 1
    ahead = known != UNKNOWN and inc_at(log, at) != known and bug not in ('ahead_unnoticed', 'ahead_passes')
    return not ahead and at >= place


def ended(view, state, slots, bug):
    cuts, applied = state
    if stopped(view, cuts, bug):
        return
    if any(at < len(log[2]) for (_, at), log in zip(cuts, view, strict=True)):
        raise Bad('deadlock: a follower waits at a barrier for ever')
    for slot in range(slots):
        logged = sorted(e[3] for log in view for e in log[2] if e[0] == 'E' and e[2] == slot)
        if list(applied[slot]) != logged:
            raise Bad(f'a follower has applied {applied[slot]}, and goes on; the logs have {logged}')


CHECKS = {
    'from home': lambda: alone(),
    'from elsewhere': lambda: alone(home=1),
    'late': lambda: alone(appends=1, moves=2, late=1),
    'late, elsewhere': lambda: alone(home=1, appends=1, moves=2, late=1),
    'begun again': lambda: alone(appends=1, moves=2, restarts=1),
    'one slot': lambda: alone(slots=1, appends=2, moves=3, late=1),
    'one slot, elsewhere': lambda: alone(slots=1, home=1, appends=2, moves=3, late=1),
    'two movers': lambda: alone(slots=1, movers=2, appends=1, moves=2, late=1),
    'two movers, elsewhere': lambda: alone(slots=1, home=1, movers=2, appends=1, moves=2, late=1),
    'three shards': lambda: alone(3, slots=1, appends=1, moves=2, late=1),
    'three shards, elsewhere': lambda: alone(3, slots=1, home=1, appends=1, moves=2, late=1),
    'lost twice': lambda: alone(slots=1, losses=(0, 0), appends=2, moves=2),
    'both lost': lambda: alone(slots=1, losses=(0, 1), appends=2, moves=2),
    'both lost, elsewhere': lambda: alone(slots=1, losses=(1, 0), appends=2, moves=2),
}
BUGS = {
    'no_fence': lambda b: alone(slots=1, bug=b),
    'import_not_fenced': lambda b: alone(slots=1, bug=b),
    'ask_before_fence': lambda b: alone(slots=1, bug=b),
    'first_fence_counts': lambda b: alone(slots=1, losses=(0, 0), bug=b),
    'no_own_fence': lambda b: alone(slots=1, losses=(0, 1), bug=b),
    'no_rescue': lambda b: alone(slots=1, bug=b),
    'no_closed': lambda b: alone(slots=1, bug=b),
    'closed_elsewhere': lambda b: alone(slots=1, bug=b),
    'no_opened': lambda b: alone(slots=1, home=1, bug=b),
    'no_imports': lambda b: alone(slots=1, bug=b),
    'any_open': lambda b: alone(3, slots=1, home=1, appends=1, late=1, bug=b),
    'no_refusal': lambda b: alone(slots=1, moves=3, late=1, bug=b),
    'split_commit': lambda b: alone(slots=1, bug=b),
    'barrier_by_position': lambda b: alone(bug=b),
    'ahead_unnoticed': lambda b: alone(slots=1, bug=b),
    'ahead_passes': lambda b: alone(slots=1, home=1, bug=b),
    'stale_view': lambda b: alone(slots=1, moves=3, late=1, bug=b),
    'stale_again': lambda b: alone(slots=1, losses=(0, 0), bug=b),
}
DEEP = {
    'deep: from home': lambda: alone(appends=2, moves=3),
    'deep: from elsewhere': lambda: alone(home=1, appends=2, moves=3),
    'deep: two movers': lambda: alone(slots=1, movers=2, appends=2, moves=2, late=1),
    'deep: three shards': lambda: alone(3, slots=1, appends=2, moves=3),
    'deep: three shards, elsewhere': lambda: alone(3, slots=1, home=1, appends=2, moves=3),
}

if __name__ == '__main__':
    want = [a for a in sys.argv[1:] if not a.startswith('-')]
    checks = DEEP if '--deep' in sys.argv else CHECKS
    good = [run(k, f(), 'pass') for k, f in checks.items() if not want or k in want]
    good += [run('bug:' + k, f(k), 'fail') for k, f in BUGS.items() if k in want or not (want or checks is DEEP)]
    sys.exit(not all(good))
