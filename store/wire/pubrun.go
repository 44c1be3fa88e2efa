package wire

// PubRun is a stretch of a queue: Count publications that follow each other in one value of AppendPubs, for this queue with
// the same options.
type PubRun struct {
	Count   uint64
	Pub     string // names the value
	Index   uint64 // in it
	QoS     byte
	Options []byte
}

// AppendPubRun writes a run; a name equal to that of the run before, prev, is left out.
func AppendPubRun(dst []byte, r *PubRun, prev string) []byte {
	name := r.Pub
	if name == prev {
		name = ""
	}
	dst = AppendString(AppendUvarint(dst, r.Count), name)
	dst = append(AppendUvarint(dst, r.Index), r.QoS)
	return AppendString(dst, string(r.Options))
}
