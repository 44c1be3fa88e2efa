// What the scripts of this folder share: a device in the IM profile, over MQTT.js.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import mqtt from 'mqtt'

export const [url, version, suffix] = process.argv.slice(2)
const patience = 20_000

const fail = (what) => { console.error(what); process.exit(1) }
setTimeout(() => fail('the script takes too long'), 60_000).unref()
process.on('unhandledRejection', (err) => fail(err))

// Device is a connection that remembers what it gets, by channel, until it is taken.
export class Device {
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
    const rid = args.rid ?? String(++this.rid)
    await this.client.publishAsync(`im/cmd/${command}`, JSON.stringify({ ...args, rid }), { qos: 1 })
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
