// The IM profile end to end with MQTT.js, over tcp and ws, 3.1.1 and 5: alice on a phone and a desk, bob on a phone.
//
//   node chat.mjs URL VERSION SUFFIX
//
// says so at the end; anything that is not as docs/protocol.md has it is an exception and exit code 1.
import assert from 'node:assert/strict'
import { Device, suffix } from './device.mjs'

const alice = `alice-${suffix}`
const bob = `bob-${suffix}`
const phone = await Device.open(alice, 'phone', true)
const desk = await Device.open(alice, 'desk')
const other = await Device.open(bob, 'phone', true)

// Presence is not for strangers.
const [stranger] = await phone.do('presence.get', { users: [bob] })
assert.deepEqual(stranger, { user: bob, online: false, last_seen: 0, devices: 0 })

// A message, to bob and to alice's other device; not to the one that sent it.
const sent = await phone.do('send', { to: `u/${bob}`, cid: 'c1', type: 'text', body: { text: 'hi 漢字 😀' }, cts: Date.now() })
assert.equal(sent.state, 'sent')
assert.equal(sent.conv, `u/${bob}`)
for (const [device, conv] of [[other, alice], [desk, bob]]) {
  const m = await device.msg()
  assert.deepEqual([m.id, m.conv, m.from, m.cid, m.seq, m.cseq], [sent.id, `u/${conv}`, alice, 'c1', 1, 1])
  assert.deepEqual(m.body, { text: 'hi 漢字 😀' })
}

// Now that they talk: who is there, who comes and goes.
const [here] = await phone.do('presence.watch', { users: [bob] })
assert.deepEqual([here.user, here.online, here.devices], [bob, true, 1])

// ack: the sender's devices learn of it; the same cid again tells it, too.
await other.do('ack', { seq: 1 })
for (const device of [phone, desk]) {
  const r = await device.receipt('delivered')
  assert.deepEqual([r.conv, r.cseq, r.by, r.id, r.cid], [`u/${bob}`, 1, bob, sent.id, 'c1'])
}
const again = await phone.do('send', { to: `u/${bob}`, cid: 'c1', body: { text: 'hi 漢字 😀' } })
assert.deepEqual([again.id, again.dup, again.state], [sent.id, true, 'delivered'])
await phone.refused('send', { to: `u/${bob}`, cid: 'c1', body: 'another' }, 'conflict')

// read: the sender learns of it.
await other.do('read', { conv: `u/${alice}`, cseq: 1 })
assert.equal((await phone.receipt('read')).cseq, 1)

// typing.
await other.client.publishAsync('im/cmd/typing', JSON.stringify({ to: `u/${alice}`, state: 'start' }), { qos: 0 })
const typing = await phone.event('typing')
assert.deepEqual([typing.from, typing.state, typing.conv], [bob, 'start', `u/${bob}`])

// An answer, and sync.
const answer = await other.do('send', { to: `u/${alice}`, body: 'hi yourself' })
assert.equal(answer.cseq, 2)
assert.equal((await phone.msg()).body, 'hi yourself')
assert.equal((await desk.msg()).seq, 2)
const page = await phone.do('sync', { after: 0, limit: 10 })
assert.deepEqual(page.messages.map((m) => [m.seq, m.cseq, m.from]), [[1, 1, alice], [2, 2, bob]])
assert.deepEqual([page.head, page.more], [2, false])
assert.ok(page.epoch)
await phone.do('ack', { ids: [answer.id] })
assert.equal((await other.receipt('delivered')).cseq, 2)

// bob leaves; what is sent waits for him.
other.client.end(true) // without DISCONNECT
assert.equal((await phone.event('presence')).online, false)
const queued = await desk.do('send', { to: `u/${bob}`, cid: 'c2', body: 'while you were out' })
assert.equal(queued.state, 'queued')
assert.equal((await desk.receipt('queued')).by, bob)
assert.equal((await phone.msg()).body, 'while you were out')
const back = await Device.open(bob, 'phone', true)
assert.equal((await phone.event('presence')).online, true)
assert.equal((await back.msg()).body, 'while you were out')
await back.do('ack', { seq: 3 })

// history and conversations.
const history = await back.do('history', { conv: `u/${alice}`, after: 0 })
assert.deepEqual(history.messages.map((m) => m.cseq), [1, 2, 3])
const [conv] = await back.do('conversations', {})
assert.deepEqual([conv.conv, conv.head, conv.read, conv.last.body], [`u/${alice}`, 3, 1, 'while you were out'])

// recall and delete.
await desk.do('recall', { conv: `u/${bob}`, cseq: 3 })
assert.equal((await back.event('recall')).cseq, 3)
assert.equal((await phone.event('recall')).conv, `u/${bob}`)
await phone.do('delete', { conv: `u/${bob}`, cseqs: [1] })
assert.deepEqual((await desk.event('delete')).cseqs, [1])
const after = await desk.do('history', { conv: `u/${bob}`, after: 0 })
assert.deepEqual(after.messages.map((m) => [m.cseq, m.type, m.body]), [[2, 'text', 'hi yourself'], [3, 'recalled', null]])

// block.
await back.do('block.add', { user: alice })
await phone.refused('send', { to: `u/${bob}`, body: 'hello?' }, 'blocked')
assert.deepEqual(await back.do('block.list', {}), [alice])
await back.do('block.remove', { user: alice })
await phone.do('send', { to: `u/${bob}`, body: 'good' })
assert.equal((await back.msg()).body, 'good')

// Devices and time.
const devices = await phone.do('device.list', {})
assert.deepEqual(devices.map((d) => [d.device, d.online, d.profile]), [[`${alice}-desk`, true, 'im'], [`${alice}-phone`, true, 'im']])
const { t0, t1, t2 } = await phone.do('time', { t0: Date.now() })
assert.ok(t0 <= t2 && t1 <= t2)
await phone.refused('dance', {}, 'unknown_command')

await Promise.all([phone, desk, back].map((d) => d.client.endAsync()))
console.log('chat.mjs: all is as it should be')
process.exit(0) // not when the last timer of MQTT.js has run out
