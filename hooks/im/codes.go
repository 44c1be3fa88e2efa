package im

import (
	"github.com/mochi-mqtt/server/v2/packets"

	engine "github.com/mqim/mqim/im"
)

// reasons maps the protocol's error codes to MQTT 5 reason codes (protocol.md, Commands). What is not here is 0x83,
// implementation specific error.
var reasons = map[engine.Code]packets.Code{
	engine.BadRequest:  packets.ErrPayloadFormatInvalid,
	engine.TooLarge:    packets.ErrPacketTooLarge,
	engine.Forbidden:   packets.ErrNotAuthorized,
	engine.NotMember:   packets.ErrNotAuthorized,
	engine.Blocked:     packets.ErrNotAuthorized,
	engine.Muted:       packets.ErrNotAuthorized,
	engine.RateLimited: packets.ErrQuotaExceeded,
	engine.GroupFull:   packets.ErrQuotaExceeded,
}

func reasonFor(c engine.Code) byte {
	if r, ok := reasons[c]; ok {
		return r.Code
	}
	return packets.ErrImplementationSpecificError.Code
}

// closings maps the engine's reasons for ending a connection to DISCONNECT's.
var closings = map[engine.CloseReason]packets.Code{
	engine.CloseNoAck:   {Code: packets.ErrUnspecifiedError.Code, Reason: "messages were not acknowledged in time; connect again to go on"},
	engine.CloseStore:   {Code: packets.ErrServerUnavailable.Code, Reason: "the store cannot commit now; connect and send again"},
	engine.CloseRemoved: {Code: packets.ErrAdministrativeAction.Code, Reason: "this device was removed by its user"},
	engine.CloseTaken:   packets.ErrSessionTakenOver,
}
