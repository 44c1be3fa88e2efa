package acl

import (
	"strings"
	"testing"
)

// compile reads rules written as "allow pubsub topic".
func compile(t testing.TB, lines ...string) *Rules {
	t.Helper()
	var rules []Rule
	for _, line := range lines {
		f := strings.SplitN(line, " ", 3)
		action, err := ParseAction(f[1])
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, Rule{Allow: f[0] == "allow", Action: action, Topic: f[2]})
	}
	compiled, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func TestDecide(t *testing.T) {
	devices := []string{"deny pub devices/%u/locked", "allow pubsub devices/%u/#", "allow sub news/+", "allow pub log/%c", "allow sub pre-%u-%c/x"}
	tests := []struct {
		name         string
		rules        []string
		user, client string
		action       string
		topic        string
		want         bool
		wantRule     int
	}{
		{"no rules, publish", nil, "a", "c", "pub", "x/y", true, NoRule},
		{"no rules, everything", nil, "a", "c", "sub", "#", true, NoRule},
		{"no rules, $SYS", nil, "a", "c", "sub", "$SYS/#", true, NoRule},
		{"no rules, publish to $", nil, "a", "c", "pub", "$SYS/x", false, NoRule},
		{"publish to $ whatever the rule", []string{"allow pubsub $x/#"}, "a", "c", "pub", "$x/y", false, NoRule},

		{"own topic", devices, "a", "c", "pub", "devices/a/t", true, 1},
		{"own topic's parent", devices, "a", "c", "pub", "devices/a", true, 1},
		{"other's topic", devices, "a", "c", "pub", "devices/b/t", false, NoRule},
		{"denied first", devices, "a", "c", "pub", "devices/a/locked", false, 0},
		{"denied for publishing alone", devices, "a", "c", "sub", "devices/a/locked", true, 1},
		{"own filter", devices, "a", "c", "sub", "devices/a/#", true, 1},
		{"own filter with plus", devices, "a", "c", "sub", "devices/a/+/x", true, 1},
		{"wider filter", devices, "a", "c", "sub", "devices/#", false, NoRule},
		{"wider by plus", devices, "a", "c", "sub", "devices/+/t", false, NoRule},
		{"plus under plus", devices, "a", "c", "sub", "news/+", true, 2},
		{"literal under plus", devices, "a", "c", "sub", "news/x", true, 2},
		{"hash under plus", devices, "a", "c", "sub", "news/#", false, NoRule},
		{"longer than plus", devices, "a", "c", "sub", "news/x/y", false, NoRule},
		{"shorter than plus", devices, "a", "c", "sub", "news", false, NoRule},
		{"empty level under plus", devices, "a", "c", "sub", "news/", true, 2},
		{"subscribing alone", devices, "a", "c", "pub", "news/x", false, NoRule},
		{"client", devices, "a", "c", "pub", "log/c", true, 3},
		{"other client", devices, "a", "c", "pub", "log/d", false, NoRule},
		{"names within a level", devices, "a", "c", "sub", "pre-a-c/x", true, 4},

		{"client id is a wildcard", devices, "a", "+", "sub", "log/+", false, NoRule},
		{"client id has levels", devices, "a", "c/d", "pub", "log/c/d", false, NoRule},
		{"client id is #", []string{"allow sub dev/%c"}, "a", "#", "sub", "dev/#", false, NoRule},
		{"client id is $SYS", []string{"allow sub %c/#"}, "a", "$SYS", "sub", "$SYS/#", false, NoRule},
		{"client id with $ further on", []string{"allow sub x/%c"}, "a", "$c", "sub", "x/$c", true, 0},
		{"client id to slip past a denial", []string{"deny pub d/%c/x", "allow pub d/#"}, "a", "c/d", "pub", "d/c/d/x", false, 0},
		{"user is empty", []string{"allow sub u/%u"}, "", "c", "sub", "u/", false, NoRule},

		{"shared", devices, "a", "c", "sub", "$share/g/devices/a/#", true, 1},
		{"shared, other's", devices, "a", "c", "sub", "$share/g/devices/b/#", false, NoRule},
		{"shared in capitals", devices, "a", "c", "sub", "$SHARE/g/devices/b/#", false, NoRule},
		{"shared, leading slash", []string{"allow sub /x"}, "a", "c", "sub", "$share/g//x", true, 0},
		{"shared without filter", nil, "a", "c", "sub", "$share/g", false, NoRule},
		{"shared without group", nil, "a", "c", "sub", "$share//x", false, NoRule},
		{"shared twice", nil, "a", "c", "sub", "$share/g/$share/h/x", false, NoRule},
		{"shared $SYS", []string{"allow sub #"}, "a", "c", "sub", "$share/g/$SYS/#", false, NoRule},

		{"$SYS needs a rule", []string{"allow pubsub #"}, "a", "c", "sub", "$SYS/#", false, NoRule},
		{"$SYS and plus", []string{"allow pubsub +/#"}, "a", "c", "sub", "$SYS/broker", false, NoRule},
		{"$SYS by rule", []string{"allow sub $SYS/#"}, "root", "c", "sub", "$SYS/broker/#", true, 0},
		{"$SYS denied, the rest allowed", []string{"deny sub $SYS/#", "allow sub #"}, "a", "c", "sub", "#", true, 1},

		{"everything", []string{"allow sub #"}, "a", "c", "sub", "#", true, 0},
		{"everything said otherwise", []string{"allow sub +/#"}, "a", "c", "sub", "#", true, 0},
		{"a denied topic inside a filter", []string{"deny sub secret/#", "allow sub #"}, "a", "c", "sub", "#", false, 0},
		{"a denied topic's parent", []string{"deny sub secret/#", "allow sub #"}, "a", "c", "sub", "secret", false, 0},
		{"a denied topic by plus", []string{"deny sub secret/x", "allow sub #"}, "a", "c", "sub", "+/x", false, 0},
		{"no denied topic inside", []string{"deny sub secret/x", "allow sub #"}, "a", "c", "sub", "+/y", true, 1},
		{"denied leaf, filter with hash", []string{"deny sub a/b", "allow sub #"}, "a", "c", "sub", "a/b/#", false, 0},
		{"denied plus", []string{"deny sub +", "allow sub #"}, "a", "c", "sub", "a/b", true, 1},
		{"allowed before denied", []string{"allow sub a/#", "deny sub #"}, "a", "c", "sub", "a/b", true, 0},

		{"engine's topic", []string{"deny pubsub #"}, "a", "c", "pub", "im/cmd/send", true, NoRule},
		{"engine's filter", []string{"deny pubsub #"}, "a", "c", "sub", "im/u/a/+", true, NoRule},
		{"engine's root", []string{"deny pubsub #"}, "a", "c", "sub", "im", true, NoRule},
		{"engine's filter, shared", []string{"deny pubsub #"}, "a", "c", "sub", "$share/g/im/u/a", true, NoRule},
		{"not the engine's", []string{"deny pubsub #"}, "a", "c", "sub", "imx/y", false, 0},
		{"could match the engine's", []string{"allow sub x"}, "a", "c", "sub", "+/x", false, NoRule},

		{"no filter", nil, "a", "c", "sub", "a/#/b", false, NoRule},
		{"no filter either", nil, "a", "c", "sub", "a#", false, NoRule},
		{"empty filter", nil, "a", "c", "sub", "", false, NoRule},
		{"wildcard in a publish", nil, "a", "c", "pub", "a/+", false, NoRule},
		{"empty topic", nil, "a", "c", "pub", "", false, NoRule},
		{"percent sign", []string{"allow pub 100%%"}, "a", "c", "pub", "100%", true, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := compile(t, tt.rules...).Decide(tt.user, tt.client, tt.topic, tt.action == "pub")
			if got.Allowed != tt.want || got.Rule != tt.wantRule || (got.Why == ByRule) != (tt.wantRule != NoRule) {
				t.Errorf("%s %s: got %+v, want %v by rule %d", tt.action, tt.topic, got, tt.want, tt.wantRule)
			}
		})
	}
}

func TestNilRulesAllow(t *testing.T) {
	var rules *Rules
	if got, want := rules.Decide("a", "c", "x", true), (Decision{true, NoRule, NoRules}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDecideSaysWhy(t *testing.T) {
	one := []string{"allow pubsub a"}
	for _, tt := range []struct {
		rules         []string
		action, topic string
		want          Decision
	}{
		{one, "pub", "a", Decision{true, 0, ByRule}},
		{one, "pub", "b", Decision{false, NoRule, NoMatch}},
		{nil, "pub", "b", Decision{true, NoRule, NoRules}},
		{one, "sub", "im/u/x", Decision{true, NoRule, Reserved}},
		{one, "pub", "$SYS/x", Decision{false, NoRule, Dollar}},
		{one, "pub", "a/+", Decision{false, NoRule, Invalid}},
		{one, "sub", "a/#/b", Decision{false, NoRule, Invalid}},
		{one, "sub", "$share/g", Decision{false, NoRule, Invalid}},
	} {
		if got := compile(t, tt.rules...).Decide("u", "c", tt.topic, tt.action == "pub"); got != tt.want {
			t.Errorf("%s %s: got %+v, want %+v", tt.action, tt.topic, got, tt.want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	tests := []struct{ topic, want string }{
		{"", `acl[0].topic: found "", expected a topic filter`},
		{"a/#/b", "expected # only at the end"},
		{"a#", "whole level"},
		{"a/+b", "whole level"},
		{"a/%x", "expected %u (user)"},
		{"a/%", "expected %u (user)"},
		{"$share/g/a", "without $share/group/"},
		{"$SHARE", "without $share/group/"},
		{"a\x00", "null character"},
		{"a\xff", "UTF-8"},
		{strings.Repeat("a", 65536), "65535 bytes"},
	}
	for _, tt := range tests {
		_, err := Compile([]Rule{{Allow: true, Action: Pub, Topic: tt.topic}})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Compile(%.20q): got %v, want %q", tt.topic, err, tt.want)
		}
	}
	if _, err := Compile([]Rule{{Topic: "a"}}); err == nil {
		t.Error("a rule without action: got no error")
	}
	if _, err := ParseAction("publish"); err == nil {
		t.Error("ParseAction(publish): got no error")
	}
}

// matches is MQTT's matching of one topic, written as plainly as can be to judge the code above by.
func matches(filter, topic string) bool {
	f, p := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "#" || f[0] == "+") {
		return false
	}
	for i := range f {
		switch {
		case f[i] == "#":
			return true
		case i >= len(p) || f[i] != "+" && f[i] != p[i]:
			return false
		}
	}
	return len(f) == len(p)
}

// universe is every topic of up to four levels over a small alphabet; "z" stands for what no filter names.
func universe() []string {
	var all []string
	words := []string{"a", "b", "", "$s", "z"}
	var add func(prefix string, depth int)
	add = func(prefix string, depth int) {
		for _, w := range words {
			topic := prefix + w
			all = append(all, topic) // the empty one too, which cannot be published: it keeps the definition simple
			if depth < 4 {
				add(topic+"/", depth+1)
			}
		}
	}
	add("", 1)
	return all
}

// FuzzCoverAndOverlap compares with the definition: a filter is covered if all its topics match the rule, and
// overlaps if any does.
func FuzzCoverAndOverlap(f *testing.F) {
	f.Add([]byte{0, 4}, []byte{0, 5})
	f.Add([]byte{5}, []byte{4, 5})
	f.Add([]byte{3, 5}, []byte{4})
	topics := universe()
	words := []string{"a", "b", "", "$s", "+", "#"}
	filter := func(picks []byte) string {
		var levels []string
		for _, p := range picks[:min(len(picks), 3)] {
			w := words[int(p)%len(words)]
			levels = append(levels, w)
			if w == "#" {
				break
			}
		}
		return strings.Join(levels, "/")
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		rule, asked := filter(a), filter(b)
		if rule == "" || asked == "" {
			return
		}
		levels, err := parseTopic(rule)
		if err != nil {
			t.Fatalf("parseTopic(%q): %v", rule, err)
		}
		wantCover, wantOverlap := true, false
		for _, topic := range topics {
			if !matches(asked, topic) {
				continue
			}
			if matches(rule, topic) {
				wantOverlap = true
			} else {
				wantCover = false
			}
		}
		if got := covers(levels, "u", "c", asked); got != wantCover {
			t.Errorf("rule %q covers %q: got %v, want %v", rule, asked, got, wantCover)
		}
		if got := overlaps(levels, "u", "c", asked); got != wantOverlap {
			t.Errorf("rule %q overlaps %q: got %v, want %v", rule, asked, got, wantOverlap)
		}
	})
}

// FuzzNamesNeverWiden: whatever the user and the client are called, what a rule with placeholders lets them
// subscribe to has exactly their name in that place.
func FuzzNamesNeverWiden(f *testing.F) {
	f.Add("alice", "c1", "d/alice/c1")
	f.Add("alice", "+", "d/alice/+")
	f.Add("a", "#", "d/a/#")
	f.Add("a/b", "", "d/a/b/")
	rules := compile(f, "allow sub d/%u/%c")
	f.Fuzz(func(t *testing.T, user, client, asked string) {
		if d := rules.Decide(user, client, asked, false); !d.Allowed || d.Rule == NoRule {
			return
		}
		if rest, shared, _ := unshare(asked); shared {
			asked = rest
		}
		if asked != "d/"+user+"/"+client || strings.ContainsAny(user+client, "+#/") {
			t.Errorf("user %q, client %q may subscribe to %q", user, client, asked)
		}
	})
}
