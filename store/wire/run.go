package wire

import "github.com/mqim/mqim/store"

// Run is a stretch of an inbox: Count messages that follow each other in one chunk.
type Run struct {
	Count uint64
	Conv  store.Conv
	Cseq  uint64 // of the first
	LSN   uint64 // where the chunk lies, in a driver that has its chunks in one sequence; else 0
	Index uint64 // in the chunk
}

// AppendRun writes a run; a conversation equal to the one of the run before is left out.
func AppendRun(dst []byte, r *Run, prev store.Conv) []byte {
	dst = AppendUvarint(dst, r.Count)
	if r.Conv == prev {
		dst = append(dst, 0)
	} else {
		dst = AppendString(dst, string(r.Conv))
	}
	dst = AppendUvarint(dst, r.Cseq)
	dst = AppendUvarint(dst, r.LSN)
	return AppendUvarint(dst, r.Index)
}

// RunReader walks over runs that were written one after the other.
type RunReader struct {
	D Decoder
	Run
}

// Runs starts a walk.
func Runs(b []byte) RunReader { return RunReader{D: Decoder{B: b}} }

// Next moves to the next run; false at the end or, with D.Bad set, where the runs do not decode.
func (r *RunReader) Next() bool {
	if r.D.Off >= len(r.D.B) {
		return false
	}
	r.Count = r.D.Uvarint()
	if c := r.D.Bytes(); len(c) > 0 && string(c) != string(r.Conv) {
		r.Conv = store.Conv(c)
	}
	r.Cseq, r.LSN, r.Index = r.D.Uvarint(), r.D.Uvarint(), r.D.Uvarint()
	if r.Count == 0 || r.Conv == "" {
		r.D.Bad = true
	}
	return !r.D.Bad
}
