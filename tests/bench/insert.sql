insert into raw (payload) values ('a row');
