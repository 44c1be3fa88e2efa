-- +goose Up
CREATE TABLE IF NOT EXISTS mqim_claims (
  client  VARBINARY(255)  NOT NULL,
  epoch   BIGINT UNSIGNED NOT NULL,
  claimed BIGINT          NOT NULL,
  PRIMARY KEY (client)
) ENGINE=InnoDB;
