-- Whom a client takes mail from, as it told HQ: lists of client ids in JSON.
CREATE TABLE contacts (client text COLLATE "C" PRIMARY KEY, allowed text NOT NULL, blocked text NOT NULL);
