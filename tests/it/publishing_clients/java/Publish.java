import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

/** Publish URL PAYLOAD HEADERS ORDER...: prints `ok` or the SQLSTATE of each order. */
public class Publish {
    // BLOCK

    public static void main(String[] arguments) throws SQLException {
        var url = URI.create(arguments[0]);
        var user = url.getUserInfo().split(":");
        var jdbc = "jdbc:postgresql://" + url.getAuthority().split("@")[1] + url.getPath();
        var password = user.length > 1 ? user[1] : null;
        try (var connection = DriverManager.getConnection(jdbc, user[0], password)) {
            for (var i = 3; i < arguments.length; i++) {
                var orderId = Long.parseLong(arguments[i]);
                try {
                    new Publish().placeOrder(connection, orderId, arguments[1], arguments[2]);
                    System.out.println("ok");
                } catch (SQLException error) {
                    System.out.println(error.getSQLState());
                }
            }
        }
    }
}
