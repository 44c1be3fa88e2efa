-- Names and bodies are bytes, compared as bytes. Numbers that count from 1 are unsigned, times are Unix milliseconds.
-- A statement may be met twice, since a server commits each at once: hence IF NOT EXISTS.

-- +goose Up
CREATE TABLE IF NOT EXISTS mqim_meta (
  name  VARBINARY(64)   NOT NULL,
  value VARBINARY(1024) NOT NULL,
  PRIMARY KEY (name)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_writers (
  id      VARBINARY(32)   NOT NULL,
  batch   BIGINT UNSIGNED NOT NULL,
  last_id BIGINT          NOT NULL,
  seen    BIGINT          NOT NULL,
  PRIMARY KEY (id),
  KEY by_last_id (last_id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_convs (
  conv    VARBINARY(300)  NOT NULL,
  cseq    BIGINT UNSIGNED NOT NULL,
  last_id BIGINT          NOT NULL,
  from_a  BIGINT UNSIGNED NOT NULL,
  from_b  BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (conv)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_chunks (
  conv   VARBINARY(300)  NOT NULL,
  first  BIGINT UNSIGNED NOT NULL,
  n      INT UNSIGNED    NOT NULL,
  max_ts BIGINT          NOT NULL,
  cum_a  BIGINT UNSIGNED NOT NULL,
  cum_b  BIGINT UNSIGNED NOT NULL,
  in_a   INT UNSIGNED    NOT NULL,
  in_b   INT UNSIGNED    NOT NULL,
  body   LONGBLOB        NOT NULL,
  PRIMARY KEY (conv, first)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_recalls (
  conv   VARBINARY(300)  NOT NULL,
  cseq   BIGINT UNSIGNED NOT NULL,
  sender VARBINARY(128)  NOT NULL,
  PRIMARY KEY (conv, cseq)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_inboxes (
  user    VARBINARY(128)  NOT NULL,
  seq     BIGINT UNSIGNED NOT NULL,
  max_ts  BIGINT          NOT NULL,
  trimmed BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (user)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_entries (
  user   VARBINARY(128)  NOT NULL,
  first  BIGINT UNSIGNED NOT NULL,
  n      INT UNSIGNED    NOT NULL,
  max_ts BIGINT          NOT NULL,
  min_ts BIGINT          NOT NULL,
  runs   MEDIUMBLOB      NOT NULL,
  PRIMARY KEY (user, first)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_cids (
  k    VARBINARY(640)  NOT NULL,
  hash BIGINT UNSIGNED NOT NULL,
  conv VARBINARY(300)  NOT NULL,
  cseq BIGINT UNSIGNED NOT NULL,
  id   BIGINT          NOT NULL,
  ts   BIGINT          NOT NULL,
  PRIMARY KEY (k)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_views (
  conv      VARBINARY(300)  NOT NULL,
  user      VARBINARY(128)  NOT NULL,
  read_to   BIGINT UNSIGNED NOT NULL,
  delivered BIGINT UNSIGNED NOT NULL,
  deleted   TINYINT         NOT NULL,
  own       BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (conv, user)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_owns (
  conv  VARBINARY(300)  NOT NULL,
  user  VARBINARY(128)  NOT NULL,
  first BIGINT UNSIGNED NOT NULL,
  total BIGINT UNSIGNED NOT NULL,
  rest  BLOB            NOT NULL,
  PRIMARY KEY (conv, user, first)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_deletions (
  user VARBINARY(128)  NOT NULL,
  conv VARBINARY(300)  NOT NULL,
  cseq BIGINT UNSIGNED NOT NULL,
  own  TINYINT         NOT NULL,
  PRIMARY KEY (user, conv, cseq)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_directs (
  user    VARBINARY(128) NOT NULL,
  conv    VARBINARY(300) NOT NULL,
  last_id BIGINT         NOT NULL,
  PRIMARY KEY (user, conv),
  KEY by_last_id (user, last_id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_groups (
  id          VARBINARY(128)  NOT NULL,
  version     BIGINT UNSIGNED NOT NULL,
  name        BLOB            NOT NULL,
  notice      MEDIUMBLOB      NOT NULL,
  is_open     TINYINT         NOT NULL,
  history_all TINYINT         NOT NULL,
  receipts    TINYINT         NOT NULL,
  owner       VARBINARY(128)  NOT NULL,
  created     BIGINT          NOT NULL,
  members     BIGINT UNSIGNED NOT NULL,
  large_from  BIGINT UNSIGNED NOT NULL,
  ended       BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_members (
  grp         VARBINARY(128) NOT NULL,
  user        VARBINARY(128) NOT NULL,
  present     TINYINT        NOT NULL,
  role        TINYINT        NOT NULL,
  joined      BIGINT         NOT NULL,
  muted_until BIGINT         NOT NULL,
  spans       BLOB           NOT NULL,
  PRIMARY KEY (grp, user),
  KEY by_presence (grp, present, user)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_memberships (
  user    VARBINARY(128) NOT NULL,
  conv    VARBINARY(300) NOT NULL,
  present TINYINT        NOT NULL,
  large   TINYINT        NOT NULL,
  left_id BIGINT         NOT NULL,
  PRIMARY KEY (user, conv)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_blocks (
  user VARBINARY(128) NOT NULL,
  peer VARBINARY(128) NOT NULL,
  PRIMARY KEY (user, peer)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_users (
  user       VARBINARY(128)  NOT NULL,
  cursor_seq BIGINT UNSIGNED NOT NULL,
  last_seen  BIGINT          NOT NULL,
  PRIMARY KEY (user)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_devices (
  user       VARBINARY(128)  NOT NULL,
  device     VARBINARY(255)  NOT NULL,
  cursor_seq BIGINT UNSIGNED NOT NULL,
  last_seen  BIGINT          NOT NULL,
  expires    BIGINT          NOT NULL,
  profile    VARBINARY(32)   NOT NULL,
  PRIMARY KEY (user, device)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_cursors (
  user   VARBINARY(128)  NOT NULL,
  device VARBINARY(255)  NOT NULL,
  conv   VARBINARY(300)  NOT NULL,
  cseq   BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (user, device, conv)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_notices (
  name    VARBINARY(300)  NOT NULL,
  ts      BIGINT          NOT NULL,
  hash    BIGINT UNSIGNED NOT NULL,
  payload MEDIUMBLOB      NOT NULL,
  PRIMARY KEY (name, ts, hash)
) ENGINE=InnoDB;
