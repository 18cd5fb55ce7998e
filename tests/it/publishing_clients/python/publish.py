"""publish.py URL CORRELATION_ID ORDER...: prints `ok` or the SQLSTATE of each order."""

import sys

import psycopg

# BLOCK

url, correlation_id, *orders = sys.argv[1:]
with psycopg.connect(url) as connection:
    for order in orders:
        try:
            place_order(connection, int(order), 1999, correlation_id)
            print("ok")
        except psycopg.Error as error:
            print(error.sqlstate)
    # Leaving the block would commit what is still open.
    connection.rollback()
