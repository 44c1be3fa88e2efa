// Package bench is a load generator for MQTT brokers, and a checker of what they deliver.
//
// It speaks MQTT 3.1.1 and 5 over TCP to any broker (profile topic), and the plain and IM profiles of mqim. Every
// message carries who sent it, its number and when, so a receiver measures the latency from publish to delivery and
// notices what was lost, repeated or out of order: a fast broker that loses messages is not fast, it is wrong, and
// [Report.Err] says so.
//
// The generator shares its machine with the broker that it measures, so it must cost far less. That is why it has a
// codec of its own and not a client library:
//
//   - one goroutine a connection reads 64 KiB at a time, handles packets where they lie in the buffer and allocates
//     nothing per message;
//   - whatever it has to write, PUBACKs and the publishes that acks made room for, gathers until it would have to wait
//     for the socket, and goes out in one write(2);
//   - a sender's packet is encoded once, and only its packet id and payload header are written anew for each message.
//
// # Who owns what
//
// The goroutine of a connection owns its reader, its checkers and its histograms; others read them only after that
// goroutine has ended. What the pacer, the controller and the reader share (the output buffer, a sender's counters) is
// guarded by link.mu. Counters that the progress line shows are atomics, and so are those that tell when the last receiver
// has a message; the histogram of that has a lock of its own. Every goroutine is waited for before a run
// returns.
//
// The package knows nothing of the server: it imports none of it, so what it measures is only what is on the wire.
package bench
