-- +goose Up
CREATE TABLE IF NOT EXISTS mqim_claims (
  client  VARBINARY(255)  NOT NULL,
  epoch   BIGINT UNSIGNED NOT NULL,
  claimed BIGINT          NOT NULL,
  PRIMARY KEY (client)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS mqim_numbers (
  number INT            NOT NULL,
  node   VARBINARY(32)  NOT NULL,
  name   VARBINARY(255) NOT NULL,
  PRIMARY KEY (number)
) ENGINE=InnoDB;
