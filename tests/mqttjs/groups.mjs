// A group's life end to end with MQTT.js, over tcp and ws, 3.1.1 and 5: alice on a phone and a desk, bob on a phone and
// a tablet, carol on a phone. The server has group.small_max: 3, so that dave, who has no device, makes the group large.
//
//   node groups.mjs URL VERSION SUFFIX
//
// says so at the end; anything that is not as docs/protocol.md has it is an exception and exit code 1.
import assert from 'node:assert/strict'
import { Device, suffix } from './device.mjs'

const [alice, bob, carol, dave] = ['alice', 'bob', 'carol', 'dave'].map((name) => `${name}-${suffix}`)
const group = `team-${suffix}`
const conv = `g/${group}`

const phone = await Device.open(alice, 'phone', true)
const desk = await Device.open(alice, 'desk')
const mobile = await Device.open(bob, 'mobile', true)
let tablet = await Device.open(bob, 'tablet', true)
const carols = await Device.open(carol, 'phone', true)

// change waits for what a change of the group looks like to a device: a message in the log, and an event.
async function change (device, what, by, users) {
  const m = await device.msg()
  assert.deepEqual([m.conv, m.type, m.from, m.body.change, m.body.by], [conv, 'sys.group', by, what, by])
  if (users) assert.deepEqual(m.body.users, users)
  const e = await device.take('event', (e) => e.type === 'group' && e.change === what, `event group ${what}`)
  assert.deepEqual([e.conv, e.cseq, e.by], [conv, m.cseq, by])
  return m.cseq
}

// text waits for a message.
async function text (device, from, body, cseq) {
  const m = await device.msg()
  assert.deepEqual([m.conv, m.from, m.body, m.cseq], [conv, from, body, cseq])
  return m
}

const unread = async (device) => (await device.do('conversations', {})).find((c) => c.conv === conv)?.unread

// alice makes a group. All devices of its members learn of it, the one that made it, too.
const made = await phone.do('group.create', { group, name: 'The team', members: [bob] })
assert.deepEqual([made.group, made.conv, made.kind, made.owner, made.members, made.role], [group, conv, 'small', alice, 2, 'owner'])
for (const d of [phone, desk, mobile, tablet]) assert.equal(await change(d, 'create', alice), 1)
await carols.refused('group.create', { group, name: 'Mine', members: [] }, 'exists')

// The same command again, as after a cut, is the same group.
const wild = { rid: 'again', name: 'Unnamed', members: [] }
const [first, second] = [await phone.do('group.create', wild), await phone.do('group.create', wild)]
assert.equal(first.group, second.group)
for (const d of [phone, desk]) assert.equal((await d.msg()).conv, `g/${first.group}`)

// Messages, to everybody but the device that sends; strangers are refused.
const sent = await mobile.do('send', { to: conv, cid: 'c1', body: 'hello' })
assert.deepEqual([sent.conv, sent.cseq, sent.state], [conv, 2, 'sent'])
for (const d of [phone, desk, tablet]) assert.ok((await text(d, bob, 'hello', 2)).seq > 0)
assert.deepEqual([(await mobile.do('send', { to: conv, cid: 'c1', body: 'hello' })).dup], [true])
await carols.refused('send', { to: conv, body: 'let me in' }, 'not_member')
await carols.refused('history', { conv }, 'not_member')
await carols.refused('group.join', { group }, 'forbidden')
await carols.refused('send', { to: `g/no-${suffix}`, body: 'anybody?' }, 'not_found')

// carol is added: she sees what comes from there on.
await mobile.refused('group.add', { group, users: [carol] }, 'forbidden')
await phone.do('group.add', { group, users: [carol] })
for (const d of [phone, desk, mobile, tablet, carols]) assert.equal(await change(d, 'add', alice, [carol]), 3)
assert.deepEqual((await carols.do('history', { conv, after: 0 })).messages.map((m) => m.cseq), [3])
assert.deepEqual((await carols.do('group.members', { group })).map((m) => [m.user, m.role]),
  [[alice, 'owner'], [bob, 'member'], [carol, 'member']])

// Read state: bob has the sys.group of the beginning and of carol unread, reads, and his tablet and the senders learn of it.
assert.equal(await unread(mobile), 2)
await carols.do('send', { to: conv, body: 'hi all' })
for (const d of [phone, desk, mobile, tablet]) await text(d, carol, 'hi all', 4)
assert.equal(await unread(mobile), 3)
await mobile.do('read', { conv, cseq: 4 })
assert.deepEqual([await unread(mobile), await unread(tablet)], [0, 0])
assert.equal((await tablet.event('read')).cseq, 4)
const read = await carols.receipt('read')
assert.deepEqual([read.conv, read.cseq, read.by], [conv, 4, bob])
const who = await carols.do('receipts', { conv, cseq: 4 })
assert.deepEqual([who.read, who.read_by], [1, [bob]])

// Muting.
await phone.do('group.mute', { group, user: carol, until: Date.now() + 3600_000 })
for (const d of [phone, desk, mobile, tablet, carols]) await change(d, 'mute', alice)
await carols.refused('send', { to: conv, body: 'but …' }, 'muted')
await phone.do('group.mute', { group, user: carol, until: 0 })
for (const d of [phone, desk, mobile, tablet, carols]) assert.equal(await change(d, 'mute', alice), 6)

// bob's tablet is away: of a message that is recalled meanwhile it never sees the body, and it learns what bob deleted.
for (const d of [mobile, tablet]) await d.do('ack', { conv, cseq: 6 })
await tablet.client.endAsync()
await carols.do('send', { to: conv, body: 'oops' })
await carols.do('send', { to: conv, body: 'better' })
for (const d of [phone, desk, mobile]) { await text(d, carol, 'oops', 7); await text(d, carol, 'better', 8) }
await carols.do('recall', { conv, cseq: 7 })
for (const d of [phone, desk, mobile]) assert.deepEqual([(await d.event('recall')).cseq], [7])
await mobile.do('delete', { conv, cseqs: [2] })
tablet = await Device.open(bob, 'tablet', true)
const gone = await tablet.msg()
assert.deepEqual([gone.cseq, gone.type, gone.body], [7, 'recalled', null])
await text(tablet, carol, 'better', 8)
assert.equal((await tablet.event('recall')).cseq, 7)
assert.deepEqual((await tablet.event('delete')).cseqs, [2])
assert.deepEqual((await tablet.do('history', { conv, after: 0, limit: 3 })).messages.map((m) => m.cseq), [1, 3, 4])

// dave makes it large: from there on no seq, acknowledged by conv and cseq.
await phone.do('group.add', { group, users: [dave] })
for (const d of [phone, desk, mobile, tablet, carols]) assert.equal(await change(d, 'add', alice, [dave]), 9)
assert.equal((await mobile.do('group.get', { group })).kind, 'large')
await desk.do('send', { to: conv, body: 'many of us' })
for (const d of [phone, mobile, tablet, carols]) assert.equal((await text(d, alice, 'many of us', 10)).seq, undefined)
await mobile.do('ack', { conv, cseq: 10 })
assert.equal((await desk.do('receipts', { conv, cseq: 10 })).read_by, undefined)

// carol is removed: that is the last she sees.
await phone.do('group.remove', { group, users: [carol] })
for (const d of [phone, desk, mobile, tablet, carols]) assert.equal(await change(d, 'remove', alice, [carol]), 11)
await phone.do('send', { to: conv, body: 'without her' })
for (const d of [desk, mobile, tablet]) await text(d, alice, 'without her', 12)
await carols.refused('send', { to: conv, body: 'hello?' }, 'not_member')
assert.equal((await carols.do('history', { conv })).messages.at(-1).cseq, 11)

// A device without a session goes on where the user was, the other one where it was itself.
await tablet.client.endAsync()
await phone.do('send', { to: conv, body: 'while it was away' })
tablet = await Device.open(bob, 'tablet', true)
for (const cseq of [9, 10, 11, 12, 13]) assert.equal((await tablet.take('msg', (m) => m.cseq === cseq, `cseq ${cseq}`)).conv, conv)

// A new owner; the old one leaves; the end.
await phone.refused('group.leave', { group }, 'forbidden')
await phone.do('group.transfer', { group, user: bob })
await phone.do('group.leave', { group })
await phone.refused('group.get', { group }, 'not_member')
await mobile.do('group.dissolve', { group })
await mobile.refused('send', { to: conv, body: 'anybody?' }, 'not_found')
await tablet.take('event', (e) => e.type === 'group' && e.change === 'dissolve', 'the end')
assert.equal((await tablet.do('history', { conv, limit: 1 })).messages[0].body.change, 'dissolve')

await Promise.all([phone, desk, mobile, tablet, carols].map((d) => d.client.endAsync()))
console.log('groups.mjs: all is as it should be')
process.exit(0) // not when the last timer of MQTT.js has run out
