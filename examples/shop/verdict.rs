//! Conditions that the five databases must fulfil together once no order changes any more.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use uuid::Uuid;

use super::Failure;
use super::servers::Servers;

/// Time without a change after which the state of orders that have ended is final.
const SETTLED: Duration = Duration::from_secs(30);

/// Time without a change after which an order that has not ended never will. It is much longer than
/// a killed service needs to resume: a broker may keep its partitions for 45 s, and the start of a
/// process takes long on a busy machine.
const STUCK: Duration = Duration::from_secs(240);

/// State of an order in all services.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Known {
    status: String,
    /// Stock that is reserved and not released. The next fields count payments without refund,
    /// parcels and letters.
    reserved: i64,
    paid: i64,
    parcels: i64,
    letters: i64,
}

struct Databases {
    order: PgPool,
    inventory: PgPool,
    payment: PgPool,
    shipping: PgPool,
    notification: PgPool,
}

/// Waits until no order changes any more, and prints the verdict.
pub(crate) async fn wait_and_judge(
    orders: usize,
    servers: &Servers,
    began: Instant,
) -> Result<(), Failure> {
    let connect = |name| async move { PgPool::connect(&servers.database_url(name)).await };
    let (order, inventory, payment) =
        tokio::try_join!(connect("order"), connect("inventory"), connect("payment"))?;
    let (shipping, notification) = tokio::try_join!(connect("shipping"), connect("notification"))?;
    let databases = Databases {
        order,
        inventory,
        payment,
        shipping,
        notification,
    };
    let (mut before, mut moved_at) = (HashMap::new(), Instant::now());
    let faults = loop {
        let known = databases.known().await?;
        if known != before {
            moved_at = Instant::now();
            before.clone_from(&known);
        }
        let faults = faults(orders, &known);
        let sums = databases.sums().await?;
        let patience = match have_ended(orders, &known) {
            true => SETTLED,
            false => STUCK,
        };
        if (faults.is_empty() && sums.is_empty()) || moved_at.elapsed() > patience {
            print(&known, began);
            break [faults, sums].concat();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    faults
        .iter()
        .take(20)
        .for_each(|fault| println!("FAULT  {fault}"));
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("{} faults", faults.len()).into())
    }
}

impl Databases {
    async fn known(&self) -> Result<HashMap<Uuid, Known>, sqlx::Error> {
        let mut known: HashMap<Uuid, Known> = HashMap::new();
        let orders: Vec<(Uuid, String)> = sqlx::query_as("select id, status from orders")
            .fetch_all(&self.order)
            .await?;
        for (id, status) in orders {
            known.entry(id).or_default().status = status;
        }
        type Field = fn(&mut Known) -> &mut i64;
        let counts: [(&PgPool, &'static str, Field); 4] = [
            (
                &self.inventory,
                "select order_id, count(*) from reservation where not released group by 1",
                |known| &mut known.reserved,
            ),
            (
                &self.payment,
                "select order_id, count(*) from payment where not refunded group by 1",
                |known| &mut known.paid,
            ),
            (
                &self.shipping,
                "select order_id, count(*) from parcel group by 1",
                |known| &mut known.parcels,
            ),
            (
                &self.notification,
                "select order_id, count(*) from letter group by 1",
                |known| &mut known.letters,
            ),
        ];
        for (pool, sql, field) in counts {
            for (id, count) in sqlx::query_as::<_, (Uuid, i64)>(sql)
                .fetch_all(pool)
                .await?
            {
                *field(known.entry(id).or_default()) = count;
            }
        }
        Ok(known)
    }

    /// Verifies that no money and no stock is missing.
    async fn sums(&self) -> Result<Vec<String>, sqlx::Error> {
        let stock = "select s.article || ': ' || s.delivered || ' delivered, ' || s.available
                || ' left'
            from stock s
            where delivered <> available + (
                select coalesce(sum(quantity), 0) from reservation r
                where r.article = s.article and not released
            )";
        let money = "select a.customer || ' began with ' || a.opened_with || ' and has ' || a.cents
            from account a
            where opened_with <> cents + (
                select coalesce(sum(cents), 0) from payment p
                where p.customer = a.customer and not refunded
            )";
        let mut faults: Vec<String> = sqlx::query_scalar(stock).fetch_all(&self.inventory).await?;
        faults.extend(
            sqlx::query_scalar::<_, String>(money)
                .fetch_all(&self.payment)
                .await?,
        );
        Ok(faults)
    }
}

/// Returns `true` if every order has ended and its customer is informed.
fn have_ended(orders: usize, known: &HashMap<Uuid, Known>) -> bool {
    let ended = |known: &&Known| known.status != "placed" && known.letters > 0;
    known.values().filter(ended).count() >= orders
}

fn faults(orders: usize, known: &HashMap<Uuid, Known>) -> Vec<String> {
    let mut faults = Vec::new();
    if known.len() != orders {
        faults.push(format!(
            "{orders} orders were placed, but the databases contain {}",
            known.len()
        ));
    }
    for (id, known) in known {
        // A completed order has exactly one of each effect, any other order has none. Both have one
        // letter.
        let done = i64::from(known.status == "completed");
        let right = Known {
            status: known.status.clone(),
            reserved: done,
            paid: done,
            parcels: done,
            letters: 1,
        };
        if known.status == "placed" || *known != right {
            faults.push(format!("{id} is {known:?}"));
        }
    }
    faults
}

fn print(known: &HashMap<Uuid, Known>, began: Instant) {
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    known
        .values()
        .for_each(|known| *ends.entry(&known.status).or_default() += 1);
    ends.iter()
        .for_each(|(status, count)| println!("{status:<10} {count:>6}"));
    println!("after      {:>6.1} s", began.elapsed().as_secs_f64());
}
