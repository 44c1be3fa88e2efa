-- +goose Up
CREATE TABLE IF NOT EXISTS mqim_nodes (
  id   VARBINARY(32) NOT NULL,
  seen BIGINT        NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_sessions (
  client VARBINARY(255)  NOT NULL,
  user   VARBINARY(128)  NOT NULL,
  expiry INT UNSIGNED    NOT NULL,
  since  BIGINT          NOT NULL,
  state  TINYINT         NOT NULL,
  node   VARBINARY(32)   NOT NULL,
  queue  VARBINARY(16)   NOT NULL,
  head   BIGINT UNSIGNED NOT NULL,
  passed BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (client),
  KEY by_queue (queue)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_subscriptions (
  client  VARBINARY(255)  NOT NULL,
  filter  VARBINARY(2600) NOT NULL,
  options BLOB            NOT NULL,
  PRIMARY KEY (client, filter)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_filters (
  path    VARBINARY(2300) NOT NULL,
  share   VARBINARY(500)  NOT NULL,
  client  VARBINARY(255)  NOT NULL,
  options BLOB            NOT NULL,
  PRIMARY KEY (path, share, client)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_pubs (
  pub  VARBINARY(32) NOT NULL,
  body LONGBLOB      NOT NULL,
  PRIMARY KEY (pub)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_pub_refs (
  pub   VARBINARY(32) NOT NULL,
  queue VARBINARY(16) NOT NULL,
  PRIMARY KEY (pub, queue)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_queues (
  queue VARBINARY(16)   NOT NULL,
  first BIGINT UNSIGNED NOT NULL,
  n     INT UNSIGNED    NOT NULL,
  runs  MEDIUMBLOB      NOT NULL,
  PRIMARY KEY (queue, first)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_outbound (
  queue     VARBINARY(16)   NOT NULL,
  seq       BIGINT UNSIGNED NOT NULL,
  packet_id SMALLINT UNSIGNED NOT NULL,
  received  TINYINT         NOT NULL,
  done      TINYINT         NOT NULL,
  PRIMARY KEY (queue, seq)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_inbound (
  queue     VARBINARY(16)     NOT NULL,
  packet_id SMALLINT UNSIGNED NOT NULL,
  PRIMARY KEY (queue, packet_id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_retained (
  path    VARBINARY(2300) NOT NULL,
  expires BIGINT          NOT NULL,
  body    LONGBLOB        NOT NULL,
  PRIMARY KEY (path)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_counts (
  name  VARBINARY(32) NOT NULL,
  value BIGINT        NOT NULL,
  PRIMARY KEY (name)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_wills (
  client VARBINARY(255) NOT NULL,
  body   LONGBLOB       NOT NULL,
  PRIMARY KEY (client)
) ENGINE=InnoDB;
