"""HQ's store in PostgreSQL.

driver      pg8000: a connection, its errors in our words       copybinary  rows in and out, bodies never as text
target      which server                                        connect     finding the one that can be written
schema      steps, upgrades, a partition for each month          lease       who writes: epoch, lease, fence
commit      one commit's changes                                queries     facts, bodies, reports
retention   what goes because it is old                         store       the port
"""
