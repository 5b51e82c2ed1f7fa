"""Given names and surnames that are common in English and Chinese texts."""

# Given names that are rarely other words.
GIVEN = frozenset(
  """
aaron abby abdul abigail abraham adam adele adrian adriana agnes ahmed aidan
aileen aisha alan alana albert alberto alec alejandra alejandro alex alexa
alexander alexandra alexandria alexis alfred alfredo alice alicia alison
alistair allan allen allison alma alvin alyssa amanda amelia amir amy ana
andre andrea andreas andres andrew andy angel angela angelica angelina angie
anita ann anna annabel anne annette annie anthony antoinette antonia antonio
anya archie ariana arjun arlene armando arnold arthur arturo ashley aubrey
audrey august aurora ava avery barbara barney barry bart beatrice becky
belinda ben benjamin bernadette bernard bernice bert bertha bessie beth
bethany betsy betty beverly blake blanche bob bobby bonnie boris brad bradley
brandi brandon brandy brenda brendan brent brett brian briana brianna bridget
brittany brooke bruce bruno bryan bryce caitlin caleb calvin cameron camilla
camille candace candice carl carla carlos carlton carmen carol carole caroline
carolyn carrie carson carter casey cassandra catherine cathy cecil cecilia
cedric celeste celia cesar chad chandra charlene charles charlie chelsea
cheryl chloe chris christian christina christine christopher christy chuck
cindy claire clara clarence claude claudia clayton clifford clifton clint
clinton clyde cody cole colette colin colleen connie connor conor conrad
constance corey cornelius cory courtney craig cristina crystal curtis cynthia
daisy dale damian damon dan dana daniel daniela danielle danny daphne darin
darlene darrell darren darryl daryl dave david dawn deanna debbie deborah
debra declan deepak deirdre delia della denis denise dennis derek derrick
desmond devin devon diana diane dianne diego dixie dmitri dolores dominic
dominick don donald donna dora doreen doris dorothy doug douglas doyle drew
duane duncan dustin dwayne dwight dylan earl ebony ed eddie edgar edith edmund
edna eduardo edward edwin eileen elaine eleanor elena eli elias elijah elisa
elise elizabeth ella ellen ellie elliot elliott elmer eloise elsa elsie elvira
emil emilia emilio emily emma emmanuel enrique eric erica erick erik erika
erin ernest ernesto ernie ernst esteban estelle esther ethan ethel eugene
eunice eva evan evelyn everett ezra fabian faye felicia felipe felix fernando
fiona floyd frances francesca francis francisco francois frank franklin fred
freda freddie frederick freya gabriel gabriela gabrielle gareth garrett gary
gavin gayle gemma gene geoffrey george georgina gerald geraldine gerard
gerardo gertrude gilbert gina ginger giovanni gladys glen glenda glenn gloria
gordon grace graham greg gregg gregory greta gretchen guillermo gustavo gwen
gwendolyn hannah hans harold harriet harrison harry harvey hassan hazel
heather hector heidi helen helena henrietta henry herbert herman hilary hilda
holly homer horace howard hugh hugo ian ibrahim ida ignacio igor imogen ingrid
ira irene iris irma irvin irving isaac isabel isabella isabelle ismael ivan
ivy jack jackie jacob jacqueline jade jaime jake jamal james jamie jan jana
jane janet janice janie jared jasmine jason jasper javier jay jayne jean
jeanette jeanne jeff jefferson jeffery jeffrey jen jenna jennie jennifer jenny
jeremiah jeremy jermaine jerome jerry jesse jessica jessie jesus jill jim
jimmie jimmy jo joan joann joanna joanne joaquin jodi jody joe joel joey johan
johanna john johnathan johnnie johnny jon jonah jonas jonathan jorge jose
josef joseph josephine josh joshua joy joyce juan juanita judith judy jules
julia julian juliana julie juliet julio julius justin justine kaitlyn kara
karen kari karina karl karla kate katelyn katherine kathleen kathryn kathy
katie katrina kay kayla keith kelley kelli kellie kelly kelsey ken kendra
kenneth kenny kerri kerry kevin kieran kim kimberly kirk kirsten kris krista
kristen kristin kristina kristine kristy kumar kurt kyle lana lance lara larry
latoya laura lauren laurence laurie lawrence leah lee leila leland lena leo
leon leona leonard leonardo leroy leslie lester leticia levi lewis liam lila
lillian lillie lily linda lindsay lindsey lionel lisa liz liza lloyd logan
lois lola lonnie lora loren lorena lorenzo loretta lori lorraine louis louisa
louise lowell lucas lucia lucille lucinda lucy luis luke lula luther lydia
lyle lynda lynette lynn lynne mabel mack maggie malcolm mandy manuel marc
marcel marcella marcia marco marcus margaret margarita margie marguerite maria
mariah marian marianne marie marilyn mario marion marisa marissa marjorie
marlene marlon marsha marshall martha martin martina marty marvin mary maryann
matilda matt matteo matthew maureen maurice max maxine megan meghan mei
melanie melinda melissa mercedes meredith mia micah michael michaela micheal
michele michelle miguel mike mildred milton mindy minnie miranda miriam mitch
mitchell mohamed mohammad mohammed molly mona monica monique morris muhammad
muriel myra myrtle nadia nadine nancy naomi natalia natalie natasha nathan
nathaniel neal ned neil nellie nelson nettie nia nicholas nick nicola nicolas
nicole nigel nikhil nikki nina noah noel nora noreen norma norman olga olive
oliver olivia omar opal ophelia orlando oscar otis owen pablo pam pamela pat
patricia patrick patsy patti patty paul paula pauline pedro peggy penelope
penny percy perry pete peter petra phil philip phillip phillis phoebe phyllis
pierre preston priscilla priya quentin quincy rachael rachel rafael rahul raj
rajesh ralph ramon ramona randal randall randy raquel raul ravi ray raymond
rebecca reginald rene renee rex rhonda ricardo richard rick rickey ricky rita
rob robbie robert roberta roberto robin robyn rochelle roderick rodney rodrigo
roger roland rolando roman ron ronald ronnie rory rosa rosalie rosalind
rosanna roseanne rosemary rosie ross rowena roxanne roy ruben ruby rudolph
rudy rufus rupert russell ruth ryan sabrina sadie sally salvador salvatore sam
samantha samir sammy samuel sandra sandy sanjay santiago sara sarah sasha saul
scott sean sebastian selena serena sergio seth shane shannon shari sharon
shaun shawn sheila shelby sheldon shelia shelley shelly sheri sherri sherry
sheryl shirley sidney silvia simon simone sofia sonia sonja sonya sophia
sophie stacey stacy stan stanley stefan stella stephan stephanie stephen steve
steven stewart stuart sue sunil susan susanna susie suzanne sylvester sylvia
tabitha tamara tami tammy tanya tara tasha taylor ted terence teresa teri
terrance terrell terrence terri terry tessa thelma theo theodore theresa
thomas tiffany tim timothy tina toby todd tom tomas tommy toni tony tracey
traci tracy travis trevor tricia trisha tristan troy tyler tyrone valerie
vanessa vera vernon veronica vicki vickie vicky victor vijay vikram vincent
viola violet vivian viviana vladimir wallace walter wanda warren wayne wendell
wendy wesley whitney wilbur wilfred willard willie wilma winifred winston
wyatt xavier yolanda yvette yvonne zachary zoe zoey aarav abdullah abena
adaeze adebayo aditi aditya agnieszka ahmad aiden aisling akira aleksander
alessandro ali alisha aliyah amara ameer amelie amina amit ananya anders
andrei andrzej anil anika anjali ankit annika antoine arya asha ashok astrid
ayesha ayumi beatriz benedict bianca bjorn bogdan brianne brooklyn camila
carmela catalina chidi chiara chinedu claudio colton cooper dakota daiki dalia
darius davide delilah dimitri dmitry dong ekaterina elif eliana elina
elisabeth eliza emeka emre enzo ezekiel farah farid fatima fatma federico femi
finn fiorella francesco fumiko gabriele gael genevieve georgios giorgio giulia
giuseppe grigory guadalupe gunther hadley hailey hamza harini harper haruto
haruki heinrich helga henrik hiroshi hiroko hui hunter huda ibrahima ifeoma
ileana ilya imani imran ines ingeborg isla isolde ismail ivana jacek jaden
jamila jayden jelena jens jiang jing joao jocelyn johannes josue juergen jun
kai kamal kamila karan karthik katarzyna katja kavita kayden kaylee keiko
kenji kenzo khadija khalid kofi krishna krzysztof kwame kwabena kyoko lakshmi
lars latif layla liang lina ling luca luciana ludwig magdalena mahmoud maja
makoto malik manoj marek mariam mariana marta masako mateo mateusz matthias
mattias maya meera mehmet min ming mikhail milan milena milo mina mohan
mustafa nasser natalya neha nevaeh nikita nikolai nikolaus niamh nisha nour
nuno obinna oksana oleg olek osama oskar paolo parisa pavel peyton piotr pooja
prakash pranav pritha priyanka qing rafaela ragnar rajiv rakesh ramesh rashid
ravindra reza riley rina ritu rohan rohit rui ryo sabine sakura salma samira
sana sandeep sanjana saoirse satoshi sergei shaniqua shreya siobhan siddharth
sigrid sinead sofie soren stefania suresh sven svetlana swati tadashi takashi
tariq tatiana thiago tomasz tuan abbie aimee ashlee ashleigh bethan bethanie
beverley billy breanna callum carly ceri cheyenne destiny dewi eoin euan
fergus garry gethin hayley hollie iain isaiah jemma jodie kaitlin kayleigh
kiara kieron kimberley kirsty lesley lorna lynsey mathew melvin moira morag
nichole paige regina rhys rhian shona sian stacie stefanie tanner ulrich umar
usha uwe valentina vanya vikas vinod viktor viktoria wei wenjing wolfgang xiao
xin yan yasmin yasmine ying yosef youssef yuki yuko yuri yusuf zainab zara
zhen zhi zoya
""".split()
)
# Given names that are also words or places: a listed surname must follow.
AMBIGUOUS = frozenset(
  """
amber april art austin autumn bill bud carolina chase charlotte christian
dallas dean diamond drew eve faith florence forest gene georgia grace grant
guy heath hope hunter israel jackson jade jasmine jordan josh joy june kay
lane lee lincoln louis lynn madison major march mark marina mason may mercy
miles mona norm olive orlando paris parker pat pearl penny phoenix prince ray
reed rich river rob robin rocky rod roman rose rusty sandy savannah skip sky
stone sterling summer sue sydney terry trinity troy victoria virginia wade
washington will william willow
""".split()
)
# Surnames that are hardly ever anything else.
SURNAMES = frozenset(
  """
abbott abrams acosta adams adkins aguilar ahmed alexander allen allison
alvarado alvarez anderson andrews anthony armstrong arnold ashton atkins
atkinson austin avila bailey baldwin ballard banerjee barber barker barlow
barnes barnett barrett barton bates bauer baxter beck becker bell beltran
bennett benson bentley berg bernstein berry bhatt black blair blake blanchard
bowen bowers bowman boyd boyle bradford bradley bradshaw brady brennan brewer
briggs brooks brown browning bruce bryant buchanan burgess burke burnett burns
burton bush butler byrd cabrera cameron campbell cannon cardenas carey carlson
carpenter carr carrillo carroll carson carter casey castillo castro cervantes
chan chandler chang chapman charles chavez chen cheng choi christensen chung
clark clarke clayton cobb cohen coleman collins connolly connor contreras
conway cook cooper copeland cortez costa cox craig crawford crosby cruz
cummings cunningham curtis dalton daniels daugherty davenport davidson davies
davis dawson delacruz delaney deleon delgado dennis desai diaz dickson dixon
doherty dominguez donnelly donovan douglas doyle drake dudley duffy duncan
dunn duran edwards elliott ellis erickson escobar espinoza estrada evans
farrell ferguson fernandez figueroa fischer fisher fitzgerald fitzpatrick
fleming fletcher flores flynn foley ford foster fowler fox francis franco
frank franklin frazier freeman friedman fuentes fuller gallagher gallegos
garcia gardner garner garrett garza george gibbs gibson gilbert gill gillespie
glover goldberg gomez gonzales gonzalez goodman goodwin gordon graham graves
gray green greene gregory griffin griffith griffiths gross guerra guerrero
gupta gutierrez guzman hale hall hamilton hammond hampton hanna hansen hanson
harding hardy harper harrington harris harrison hart hartman harvey hawkins
hayes haynes henderson hendricks henry hernandez herrera hicks higgins hill
hines hodges hoffman hogan holland holloway holmes holt hopkins horton houston
howard howe howell hubbard hudson huerta huff huffman hughes hunt hunter
hussain hutchinson ibarra ingram iyer jackson jacobs jacobson james jefferson
jenkins jennings jensen jimenez johns johnson johnston jones jordan joseph
joyce juarez kapoor kaur keller kelley kelly kemp kennedy kerr khan kim king
kirby klein knight knox kramer krueger kumar lam lambert lamb lara larsen
larson lawrence lawson le leblanc lee leon leonard lester levine levy lewis li
lim lin lindsey little liu livingston lloyd logan lopez love lowe lozano lucas
lucero luna lynch lyons macdonald macias mack mackenzie maldonado malone mann
manning marquez marsh marshall martin martinez mason massey mathews mathis
matthews maxwell mcbride mccall mccann mccarthy mccormick mccoy mccullough
mcdaniel mcdonald mcdowell mcgee mcgrath mcguire mcintosh mcintyre mckay mckee
mckenzie mckinney mclaughlin mclean mcmahon mcmillan mcpherson medina mehta
mejia melendez mendez mendoza mercado mercer merritt meyer meyers meza
middleton miles miller mills miranda mitchell molina monroe montgomery montoya
moody moore mora morales moran moreno morgan morris morrison morrow morse
morton moss mueller mullins munoz murillo murphy murray myers nair nash
navarro neal nelson newman newton nguyen nichols nicholson nielsen nixon noble
nolan norman norris norton novak nunez obrien ochoa oconnell oconnor odonnell
oliver olsen olson oneal oneill orozco ortega ortiz osborne owen owens pacheco
padilla page palmer park parker parks parrish parsons patel patrick patterson
patton paul payne pearson peck pena pennington perez perkins perry peters
petersen peterson pham phelps phillips pierce pittman pollard ponce poole pope
porter potter powell powers pratt preston price prince proctor pruitt pugh
quinn ramirez ramos ramsey randall randolph rangel rao rasmussen ray reddy
reed reese reeves reid reilly reyes reynolds rhodes rice rich richards
richardson richmond riley rios rivas rivera robbins roberts robertson robinson
robles rocha rodgers rodriguez rogers rojas roman romero rosales rosas rose
rosenberg ross rossi roth rowe rowland roy rubio ruiz rush russell russo ryan
salas salazar salinas sanchez sanders sandoval sanford santana santiago santos
saunders savage sawyer schaefer schmidt schmitt schneider schroeder schultz
schwartz scott sellers serrano sexton shaffer shah shannon sharma sharp shaw
shelton shepherd sheppard sherman shields short silva simmons simon simpson
sims sinclair singh singleton skinner sloan small smith snow snyder solis
solomon sosa soto spencer stafford stanley stanton stark steele stein stephens
stephenson stevens stevenson stewart stokes stone strickland strong stuart
suarez sullivan summers sutton swanson sweeney tanner tate taylor terrell
terry thomas thompson thomson thornton todd torres townsend tran travis trejo
trevino trujillo tucker turner tyler underwood valdez valencia valentine
valenzuela vance vargas vasquez vaughan vaughn vazquez vega velasquez
velazquez velez vincent wade wagner walker wall wallace waller walls walsh
walter walters walton wang ward ware warner warren washington waters watkins
watson watts weaver webb weber webster weeks weiss welch wells west whitaker
white whitehead whitney wiggins wiley wilkerson wilkins wilkinson williams
williamson willis wilson winters wise wolf wolfe wong wood woodard woods
woodward wright wu wyatt xu yang yates yoder york young yu zamora zhang
zimmerman zuniga
""".split()
)
# Chinese: family names, of one and two characters, by frequency.
FAMILY = frozenset(
  "傅赖常庄封诸阎迟奚伏居隗丰麻冼粟邝揭练植王李张刘陈杨黄赵吴周徐孙马朱胡郭何"
  "高林罗郑梁谢宋唐许韩冯邓曹彭曾萧肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜"
  "崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵"
  "万钱严覃武戴莫孔向汤温康施文牛樊葛邢安齐易乔伍庞颜倪聂章鲁岳翟殷詹申欧耿关"
  "兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕单季裴霍涂成苗谷盛曲翁冉骆蓝路游辛靳"
  "管柴蒙鲍华喻祁蒲房滕屈饶解牟艾尤阳时穆农司卓古吉缪简车项连芦麦褚娄窦戚岑景"
  "党宫费卜冷晏席卫米柏宗瞿桂全佟应臧闵苟邬边卞姬师和仇栾隋商刁沙荣巫寇桑郎甄"
  "丛仲虞敖巩明"
)
DOUBLE = (
  "欧阳",
  "上官",
  "司马",
  "诸葛",
  "司徒",
  "东方",
  "独孤",
  "南宫",
  "夏侯",
)
DOUBLE += (
  "尉迟",
  "皇甫",
  "公孙",
  "慕容",
  "令狐",
  "长孙",
  "宇文",
  "轩辕",
  "端木",
)
# Characters of given names.
GIVEN_CHARACTERS = frozenset(
  "杨畅柳想花奕昭友宸熠甜玥楷硕宥承柏霖沅芷若芊姝妍娅婉娟嬿媚妮妙姗娣贻孟仲叔"
  "季伯寅卯辰午申戌亥元亨士守寒衍峥嵘赫峻骁颢羿翀邑伟芳娜秀英敏静丽强磊军洋勇"
  "艳杰涛明超兰霞平刚桂文华建国红玉梅琴云飞鹏辉斌波宇浩然欣怡子轩雨涵梓萱一诺"
  "思佳琪俊豪博晓东南北海燕春雪冬丹凤龙虎志永小大光荣福贵金银宝珍珠翠莲菊香婷"
  "婧媛慧颖琳瑶莹璐蕾薇倩茜雯晶洁淑贞素爱美娇月星阳晨曦旭昊天泽瑞祥吉庆喜乐安"
  "康宁健力坤乾正义仁礼智信忠孝廉德才学诗书画艺林森木树松竹枫桐荷蓉芬芝茹萍莉"
  "菲蓓蕊薏冰心如意可嘉家和顺利民生成立新兴业启帆航远达通恒毅凯旋胜武威雄彬彪"
  "翔翰墨渊源清河江湖润泉淼沛沐瀚洪滨岩峰岳山崇屹川石鑫铭锋钢锐锦鸣钧钰玲珊珂"
  "珺瑾瑜璇琦琛瑛琼环佩悦忆恩慈愉悠怀念惠慕晴昕昱晖昌景晏煜炜烨灿炎焱炳煊耀亮"
  "朗灵巧仪依伊佑俐倪偲兆先克全公兵冠凌凡剑勤勋化千卓卫双发叶合君吟呈咏品哲唯"
  "善嫣嫚存宏宗定宜实宣容宽宾寿少尚尧屏岚岭崧工巍希帅常年广庭延弘弛彤彦彩影征"
  "律微徽必忻恬悟情愿战抒振捷政敬斐斯方施日旺昀易时显普晋晗曼朋望朝本权来枝柔"
  "柯栋桃梁梦楚楠榕榛槐樱檬欢歌殊毓水汉池沁泓泳津浦涓淇淳渝湘溪滢漫潇潔澄澜焕"
  "照熙爽玄玖珏理琬瑗用田男皓益盈盛盼真眉睿砚碧祖禄禹秋科秦程穆竣童端笑笛策简"
  "纯纹绍维绮继绪缘群羽翊翎耘聪育胤能致良苇苑苗苹茂范茵菁萌萧葵蒙蓝薛虹蝶行裕"
  "西言训记语谊谦豫贝贤赞越路轶轲辅迅进连逸道邦郁都采里野钊铁镇长闻阔陵陶隆隽"
  "雁雅露青韵韬风馨骏骥高鸿鹃鹤鹭麒麟黎默齐龄"
)
