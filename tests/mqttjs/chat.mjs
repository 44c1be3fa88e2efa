// The IM profile end to end with MQTT.js, over tcp and ws, 3.1.1 and 5: alice on a phone and a desk, bob on a phone.
//
//   node chat.mjs URL VERSION SUFFIX
//
// says so at the end; anything that is not as docs/protocol.md has it is an exception and exit code 1.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import mqtt from 'mqtt'

const [url, version, suffix] = process.argv.slice(2)
const patience = 20_000

const fail = (what) => { console.error(what); process.exit(1) }
setTimeout(() => fail('the script takes too long'), 60_000).unref()
process.on('unhandledRejection', (err) => fail(err))

// Device is a connection that remembers what it gets, by channel, until it is taken.
class Device {
  static async open (user, device, persistent = false) {
    const d = new Device()
    d.user = user
    d.inbox = []
    d.waiting = []
    d.rid = 0
    d.client = mqtt.connect(url, {
      username: user,
      clientId: `${user}-${device}`,
      protocolVersion: Number(version),
      clean: !persistent,
      reconnectPeriod: 0,
      properties: Number(version) === 5 && persistent ? { sessionExpiryInterval: 3600 } : undefined
    })
    d.client.on('message', (topic, payload) => {
      d.inbox.push({ channel: topic.split('/')[3], payload: JSON.parse(payload) })
      d.waiting.forEach((look) => look())
    })
    await once(d.client, 'connect') // the handler above must be there before: a session that goes on gets its messages at once
    const granted = await d.client.subscribeAsync(`im/u/${user}/+`, { qos: 1 })
    assert.equal(granted[0].qos, 1)
    return d
  }

  // take waits for what matches on a channel and takes it.
  take (channel, match = () => true, what = channel) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${this.user}: ${what} did not come; got ${JSON.stringify(this.inbox)}`)), patience)
      const look = () => {
        const i = this.inbox.findIndex((m) => m.channel === channel && match(m.payload))
        if (i < 0) return
        const [m] = this.inbox.splice(i, 1)
        clearTimeout(timer)
        this.waiting = this.waiting.filter((f) => f !== look)
        resolve(m.payload)
      }
      this.waiting.push(look)
      look()
    })
  }

  // ask runs a command and returns the whole reply.
  async ask (command, args) {
    const rid = String(++this.rid)
    await this.client.publishAsync(`im/cmd/${command}`, JSON.stringify({ rid, ...args }), { qos: 1 })
      .catch((err) => { if (!err.code) throw err }) // MQTT 5 tells a refusal in the PUBACK, too
    return this.take('reply', (r) => r.rid === rid, `the reply to ${command}`)
  }

  // do is ask that must succeed.
  async do (command, args) {
    const r = await this.ask(command, args)
    assert.ok(r.ok, `${command}: ${JSON.stringify(r)}`)
    return r.data
  }

  async refused (command, args, code) {
    const r = await this.ask(command, args)
    assert.equal(r.ok, false)
    assert.equal(r.error.code, code)
  }

  msg () { return this.take('msg') }
  event (type) { return this.take('event', (e) => e.type === type, `event ${type}`) }
  receipt (state) { return this.take('receipt', (r) => r.state === state, `receipt ${state}`) }
}

const alice = `alice-${suffix}`
const bob = `bob-${suffix}`
const phone = await Device.open(alice, 'phone', true)
const desk = await Device.open(alice, 'desk')
const other = await Device.open(bob, 'phone', true)

// Presence: who is there, who comes and goes.
const [here] = await phone.do('presence.watch', { users: [bob] })
assert.deepEqual([here.user, here.online, here.devices], [bob, true, 1])

// A message, to bob and to alice's other device; not to the one that sent it.
const sent = await phone.do('send', { to: `u/${bob}`, cid: 'c1', type: 'text', body: { text: 'hi 漢字 😀' }, cts: Date.now() })
assert.equal(sent.state, 'sent')
assert.equal(sent.conv, `u/${bob}`)
for (const [device, conv] of [[other, alice], [desk, bob]]) {
  const m = await device.msg()
  assert.deepEqual([m.id, m.conv, m.from, m.cid, m.seq, m.cseq], [sent.id, `u/${conv}`, alice, 'c1', 1, 1])
  assert.deepEqual(m.body, { text: 'hi 漢字 😀' })
}

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
