// publish URL CORRELATION_ID ORDER...: prints `ok` or the SQLSTATE of each order.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// BLOCK

func main() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Args[1])
	if err != nil {
		panic(err)
	}
	for _, order := range os.Args[3:] {
		orderID, err := strconv.ParseInt(order, 10, 64)
		if err != nil {
			panic(err)
		}
		err = placeOrder(ctx, conn, orderID, 1999, os.Args[2])
		var refused *pgconn.PgError
		switch {
		case err == nil:
			fmt.Println("ok")
		case errors.As(err, &refused):
			fmt.Println(refused.Code)
		default:
			panic(err)
		}
	}
	if err := conn.Close(ctx); err != nil {
		panic(err)
	}
}
