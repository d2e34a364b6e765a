-- Run once by the image, as root, on an empty volume: the image gives its account every right on the database. The
-- server needs these: CREATE and ALTER when a new version starts for the first time, the others always.
REVOKE ALL PRIVILEGES, GRANT OPTION FROM 'chat'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON chat.* TO 'chat'@'%';
