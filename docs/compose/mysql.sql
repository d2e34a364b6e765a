-- The image runs this once, as root, on an empty volume. The image grants its account all rights on the database. The
-- server needs only these: CREATE and ALTER for the first start of a version, the others always.
REVOKE ALL PRIVILEGES, GRANT OPTION FROM 'chat'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON chat.* TO 'chat'@'%';
